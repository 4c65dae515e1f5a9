// SPDX-License-Identifier: Apache-2.0
// Reading torch's zip files: which members there must be, and the tensors on their storages.
#include "formats/torch_zip.h"

#include <string.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "formats/pickle.h"
#include "formats/zip_members.h"

namespace mamba {
namespace {

// What stands before the pickles of torch before 1.6: the pickled number 0x1950a86a20f9469cfc6c.
constexpr std::string_view kLegacyMagic = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

void check_start(const uint8_t* bytes, size_t count, const std::string& where) {
  const std::string_view start(reinterpret_cast<const char*>(bytes), std::min<size_t>(count, 64));
  if (start.starts_with("PK\x03\x04")) return;
  if (start.find(kLegacyMagic) != std::string_view::npos) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected a zip file as torch writes since version 1.6, got the format before it; "
         "load it with torch and save it again",
         where);
  }
  if (start.starts_with('\x80')) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected a zip file as torch.save writes, got a bare pickle, of which nothing was "
         "executed; save it with torch.save",
         where);
  }
  fail(ErrorCode::kBadFile,
       "[{}] expected a zip file as torch.save writes (\"PK\" at byte 0), got \"{}\"; is this a "
       "checkpoint?",
       where, printable(start.substr(0, 8)));
}

// The member, its bytes, or null if there is none.
class Members {
 public:
  Members(const uint8_t* file, size_t count, const std::string& where)
      : file_(file), where_(where), members_(list_zip_members(file, count, where)) {
    std::vector<std::string> folders;
    for (const ZipMember& member : members_) {
      if (member.name.ends_with("/constants.pkl")) {
        fail(ErrorCode::kUnsupported,
             "[{}] expected a state dict, got a TorchScript program; save its state dict", where_);
      }
      if (member.name.ends_with("/data.pkl")) {
        folders.push_back(member.name.substr(0, member.name.size() - 8));
      }
    }
    if (folders.size() != 1) {
      fail(ErrorCode::kBadFile,
           "[{}] expected one member named */data.pkl as torch.save writes, got {}; is this a "
           "checkpoint?",
           where_, folders.size());
    }
    folder_ = folders[0];
  }

  const ZipMember* find(const std::string& name) const {
    const std::string full = folder_ + name;
    const auto found =
        std::lower_bound(members_.begin(), members_.end(), full,
                         [](const ZipMember& m, const std::string& key) { return m.name < key; });
    return found != members_.end() && found->name == full ? &*found : nullptr;
  }

  // The bytes of a member: in the file, or in `owned` behind the others.
  const uint8_t* bytes(const ZipMember& member,
                       std::vector<std::unique_ptr<uint8_t[]>>& owned) const {
    if (!member.deflated) return file_ + member.offset;
    owned.push_back(unpack_zip_member(file_, member, where_));
    return owned.back().get();
  }

  std::string text(const ZipMember& member) const {
    const std::unique_ptr<uint8_t[]> bytes = unpack_zip_member(file_, member, where_);
    return {reinterpret_cast<const char*>(bytes.get()), static_cast<size_t>(member.bytes)};
  }

 private:
  const uint8_t* file_;
  const std::string& where_;
  std::vector<ZipMember> members_;
  std::string folder_;  // "archive/"
};

bool is_row_major(const PickledTensor& t) {
  int64_t expected = 1;
  for (size_t i = t.shape.size(); i-- > 0;) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

int64_t elements_of(const PickledTensor& t) {
  int64_t count = 1;  // at most that of the storage, as the pickle's reader has checked
  for (const int64_t size : t.shape) count *= size;
  return count;
}

// Writes the strided elements in row-major order.
void copy_strided(const PickledTensor& t, const uint8_t* storage, uint8_t* out) {
  const auto size = static_cast<size_t>(dtype_size(t.dtype));
  std::vector<int64_t> index(t.shape.size(), 0);
  int64_t at = t.offset;
  for (int64_t left = elements_of(t); left > 0; --left, out += size) {
    memcpy(out, storage + static_cast<size_t>(at) * size, size);
    for (size_t axis = t.shape.size(); axis-- > 0;) {
      at += t.strides[axis];
      if (++index[axis] < t.shape[axis]) break;
      at -= t.shape[axis] * t.strides[axis];
      index[axis] = 0;
    }
  }
}

}  // namespace

TorchFile::TorchFile(const std::string& path) : file_(std::make_unique<MappedFile>(path)) {
  where_ = path;
  parse(file_->data(), file_->size());
}

TorchFile::TorchFile(const void* bytes, size_t count, const std::string& where) {
  where_ = where;
  parse(static_cast<const uint8_t*>(bytes), count);
}

void TorchFile::release(const TensorInfo& tensor) const {
  if (file_) file_->release(tensor.data, static_cast<size_t>(tensor.bytes));
}

void TorchFile::parse(const uint8_t* bytes, size_t count) {
  check_start(bytes, count, where_);
  const Members members(bytes, count, where_);
  if (const ZipMember* order = members.find("byteorder")) {
    const std::string text = members.text(*order);
    if (text != "little") {
      fail(ErrorCode::kUnsupported, "[{}] expected the byteorder little, got \"{}\"; save it anew",
           where_, printable(text));
    }
  }
  const std::string pickle = members.text(*members.find("data.pkl"));
  const std::vector<PickledTensor> tensors =
      read_tensor_pickle(pickle.data(), pickle.size(), where_);
  std::map<std::string, const uint8_t*> storages;  // those used so far
  int64_t storage_bytes = 0, copied_bytes = 0;
  std::map<std::tuple<std::string, int64_t, std::vector<int64_t>, std::vector<int64_t>, DType>,
           const void*>
      copies;
  for (const PickledTensor& t : tensors) {
    const auto [storage, fresh] = storages.emplace(t.storage, nullptr);
    if (fresh) {
      const ZipMember* member = members.find("data/" + t.storage);
      if (member == nullptr || member->bytes != t.storage_bytes) {
        fail(ErrorCode::kBadFile,
             "[{}] expected storage \"{}\" of tensor \"{}\" as a member of {} bytes, got {}; the "
             "file is damaged",
             where_, printable(t.storage), printable(t.name, 100), t.storage_bytes,
             member == nullptr ? "none" : std::to_string(member->bytes));
      }
      storage->second = members.bytes(*member, owned_);
      storage_bytes += member->bytes;
    }
    add(t, storage->second);
    if (is_row_major(t)) continue;
    // Copies of the same view are shared and all together no larger than the storages, so that a
    // small file cannot ask for much memory.
    const void*& copy = copies[{t.storage, t.offset, t.shape, t.strides, t.dtype}];
    TensorInfo& info = tensors_.back();
    if (copy == nullptr && info.bytes > 0) {
      copied_bytes += info.bytes;
      if (copied_bytes > storage_bytes) {
        fail(ErrorCode::kUnsupported,
             "[{}] expected views that do not repeat their storages, got more than {} bytes of "
             "them at tensor \"{}\"; save it with .contiguous()",
             where_, storage_bytes, printable(t.name, 100));
      }
      owned_.emplace_back(new uint8_t[static_cast<size_t>(info.bytes)]);
      copy_strided(t, storage->second, owned_.back().get());
      copy = owned_.back().get();
    }
    info.data = copy;
  }
  sort();
}

void TorchFile::add(const PickledTensor& tensor, const uint8_t* storage) {
  TensorInfo info;
  info.name = tensor.name;
  info.dtype = tensor.dtype;
  info.shape = tensor.shape;
  info.bytes = elements_of(tensor) * dtype_size(tensor.dtype);
  if (info.bytes > 0) info.data = storage + tensor.offset * dtype_size(tensor.dtype);
  tensors_.push_back(std::move(info));
}

bool is_zip_file(const std::string& path) {
  const MappedFile file(path);
  return file.size() >= 4 && memcmp(file.data(), "PK\x03\x04", 4) == 0;
}

}  // namespace mamba
