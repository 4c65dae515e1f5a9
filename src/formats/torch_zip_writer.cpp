// SPDX-License-Identifier: Apache-2.0
// Writing torch's zip files: stored members whose bytes start at multiples of 64, as torch does it.
#include <zlib.h>

#include <algorithm>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "formats/pickle.h"
#include "formats/torch_zip.h"

namespace mamba {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kDate = 0x21;  // 1 January 1980: the file must not depend on the day

std::string number(int64_t value, int width) {
  std::string out;
  for (int i = 0; i < width; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  return out;
}

using Sink = std::function<void(const void*, size_t)>;
using Content = std::function<void(const Sink&)>;

class ZipWriter {
 public:
  ZipWriter(AtomicFile& file, int64_t zip64_from) : file_(file), zip64_from_(zip64_from) {}

  // `content` is asked twice: the checksum stands before the bytes.
  void add(const std::string& name, int64_t bytes, const Content& content) {
    uLong crc = 0;
    content([&](const void* block, size_t count) {
      crc = crc32_z(crc, static_cast<const Bytef*>(block), count);
    });
    const bool large = bytes >= zip64_from_;
    const int64_t offset = file_.size();
    std::string extra =
        large ? number(1, 2) + number(16, 2) + number(bytes, 8) + number(bytes, 8) : std::string();
    const auto data = offset + 30 + static_cast<int64_t>(name.size() + extra.size()) + 4;
    const int64_t padding = (kAlignment - data % kAlignment) % kAlignment;
    extra += "FB" + number(padding, 2) + std::string(static_cast<size_t>(padding), 'Z');
    const std::string sizes = number(large ? 0xffffffff : bytes, 4);
    const auto name_bytes = static_cast<int64_t>(name.size());
    file_.append("PK\x03\x04" + facts(large, static_cast<int64_t>(crc)) + sizes + sizes +
                 number(name_bytes, 2) + number(static_cast<int64_t>(extra.size()), 2) + name +
                 extra);
    const int64_t before = file_.size();
    content([&](const void* block, size_t count) { file_.append(block, count); });
    MAMBA_CHECK(file_.size() - before == bytes);
    const bool far = large || offset >= zip64_from_;
    const std::string shown = number(far ? 0xffffffff : bytes, 4);
    const std::string wide =
        far ? number(1, 2) + number(24, 2) + number(bytes, 8) + number(bytes, 8) + number(offset, 8)
            : std::string();
    directory_ += "PK\x01\x02" + number(far ? 45 : 20, 2) + facts(far, static_cast<int64_t>(crc)) +
                  shown + shown + number(name_bytes, 2) +
                  number(static_cast<int64_t>(wide.size()), 2) + std::string(10, '\0') +
                  number(far ? 0xffffffff : offset, 4) + name + wide;
    ++count_;
  }

  void add(const std::string& name, const std::string& content) {
    add(name, static_cast<int64_t>(content.size()),
        [&](const Sink& sink) { sink(content.data(), content.size()); });
  }

  void finish() {
    const int64_t offset = file_.size(), bytes = static_cast<int64_t>(directory_.size());
    const bool large = count_ >= 0xffff || bytes >= zip64_from_ || offset >= zip64_from_;
    file_.append(directory_);
    if (large) {
      file_.append("PK\x06\x06" + number(44, 8) + number(45, 2) + number(45, 2) +
                   std::string(8, '\0') + number(count_, 8) + number(count_, 8) + number(bytes, 8) +
                   number(offset, 8));
      file_.append("PK\x06\x07" + number(0, 4) + number(offset + bytes, 8) + number(1, 4));
    }
    const std::string count = number(large ? 0xffff : count_, 2);
    file_.append("PK\x05\x06" + std::string(4, '\0') + count + count +
                 number(large ? 0xffffffff : bytes, 4) + number(large ? 0xffffffff : offset, 4) +
                 std::string(2, '\0'));
  }

 private:
  // Version needed, no flags, stored, date and checksum.
  static std::string facts(bool zip64, int64_t crc) {
    return number(zip64 ? 45 : 20, 2) + number(0, 2) + number(0, 2) + number(0, 2) +
           number(kDate, 2) + number(crc, 4);
  }

  AtomicFile& file_;
  int64_t zip64_from_;
  std::string directory_;
  int64_t count_ = 0;
};

PickledTensor describe(const TensorData& tensor, size_t storage) {
  PickledTensor t;
  t.name = tensor.name;
  t.dtype = tensor.dtype;
  t.storage = std::to_string(storage);
  t.storage_bytes = count_bytes(tensor);
  t.shape = tensor.shape;
  t.strides.resize(t.shape.size());
  int64_t stride = 1;
  for (size_t i = t.shape.size(); i-- > 0;) {
    t.strides[i] = stride;
    stride *= std::max<int64_t>(t.shape[i], 1);
  }
  return t;
}

}  // namespace

void write_torch_file(const std::string& path, const std::string& folder,
                      const std::vector<TensorData>& tensors,
                      const std::map<std::string, std::string>& aliases, int64_t zip64_from) {
  std::vector<PickledTensor> pickled;
  for (size_t i = 0; i < tensors.size(); ++i) pickled.push_back(describe(tensors[i], i));
  for (const auto& alias : aliases) {
    const auto found = std::find_if(pickled.begin(), pickled.end(),
                                    [&](const PickledTensor& t) { return t.name == alias.second; });
    MAMBA_CHECK(found != pickled.end());
    PickledTensor twin = *found;
    twin.name = alias.first;
    pickled.push_back(std::move(twin));
  }
  AtomicFile file(path);
  ZipWriter zip(file, zip64_from);
  zip.add(folder + "/data.pkl", write_tensor_pickle(pickled));
  zip.add(folder + "/byteorder", "little");
  for (size_t i = 0; i < tensors.size(); ++i) {
    zip.add(folder + "/data/" + std::to_string(i), count_bytes(tensors[i]),
            [&](const Sink& sink) { for_each_block(tensors[i], sink); });
  }
  zip.add(folder + "/version", "3\n");
  zip.finish();
  file.commit();
}

}  // namespace mamba
