// SPDX-License-Identifier: Apache-2.0
// What the commands share: range-checked options, the options of running a model, standard output
// that may be closed, and Ctrl-C.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mamba/model.h"
#include "mamba/tokenizer.h"

namespace mamba::cli {

// Options of one value that must be a whole number, a finite number or one of a list of words. What
// is out of range throws invalid_argument naming the flag, the range and the value. The default is
// the value at the time of the call. The name of a type is read by help and shell completion: words
// in lower case with | between them are the values themselves, FILE and DIR are names of files and
// folders, FOLDER, MODEL and PATH too ("bytes|DIR", "FILE|PRESET", "f32|bf16", "N").
CLI::Option* add_int(CLI::App& app, const std::string& flags, int64_t* value, int64_t low,
                     int64_t high, const std::string& help);
CLI::Option* add_number(CLI::App& app, const std::string& flags, double* value, double low,
                        double high, const std::string& help);
CLI::Option* add_choice(CLI::App& app, const std::string& flags, std::string* value,
                        std::vector<std::string> allowed, const std::string& help);
CLI::Option* add_text(CLI::App& app, const std::string& flags, std::string* value,
                      const std::string& type_name, const std::string& help);

// A list with commas that adds up over the times that the flag is given, in the place of *value.
CLI::Option* add_list(CLI::App& app, const std::string& flags, std::string* value,
                      const std::string& type_name, const std::string& help);

// A whole number in [low, high] or invalid_argument; `flag` is named in the message.
int64_t parse_int(const std::string& flag, const std::string& text, int64_t low, int64_t high);
// "1,2,3" or "1, 2, 3" as numbers in [low, high]; an empty list is refused.
std::vector<int64_t> parse_int_list(const std::string& flag, const std::string& text, int64_t low,
                                    int64_t high);

// A flag of other programs that has nothing to change here: it is taken, with one warning that says
// `why`. For the value `silent` there is none.
void add_without_effect(CLI::App& app, const std::string& flags, const std::string& type_name,
                        const std::string& why, const std::string& silent = "");
// That of llama.cpp which says how many layers go to a GPU.
void add_gpu_layers(CLI::App& app);

inline constexpr const char* kNoMicroBatches = "prompts are read in pieces of a size of their own";
inline constexpr const char* kNoContext = "a state has no limit of tokens";

// --isa, --threads, --dtype, --device and --gpu-layers of every command that runs a model.
struct RunOptions {
  std::string isa = "auto";
  int64_t threads = 0;
  std::string dtype = "f32";
  std::string state_dtype = "f32";
  bool pin = false;
  bool list_devices = false;   // answered before the command runs
  std::string device = "cpu";  // or "cuda", "cuda:N"
  bool dtype_given = false;    // then blocks of a file become dtype too
  bool cache = false;          // panels of blocks are kept beside the model: add_cache_options
  bool verbose = false;        // notes about them
  double cache_after = 1;      // seconds
  std::string backend = "auto";
  bool explain = false;
};
// Names that --dtype takes, and the type of one of them.
std::vector<std::string> weight_dtypes();
DType weight_dtype_of(const std::string& name);
void add_device(CLI::App& app, std::string* device);
void add_run_options(CLI::App& app, RunOptions* options, bool with_dtype = true);
// --no-cache, --cache-after and, where the command has no such flag, --verbose; in add_run_options
// where there is a --dtype.
void add_cache_options(CLI::App& app, RunOptions* options, bool with_verbose = true);
// Where files of panels go that cannot stand beside their model; "" without a home.
std::string user_cache_folder();
// --state-dtype of commands that carry states from token to token.
void add_state_dtype(CLI::App& app, RunOptions* options);
ModelOptions model_options(const RunOptions& options);
// --backend and --explain of commands that take prompts and generate, or do as if.
void add_backend(CLI::App& app, RunOptions* options);
// With --explain one line of JSON on standard error about prompts and steps of `batch` sequences.
void explain_model(Model& model, const RunOptions& options, int64_t batch = 1);
Model load_model(const std::string& path, const RunOptions& options, int64_t batch = 1);

// The tokenizer of a model folder: that of its files, or bytes if it has none and the vocabulary is
// that of bytes. Null, with the reason, where there is none that this version reads.
std::unique_ptr<Tokenizer> tokenizer_of(const std::string& folder, const Config& config,
                                        std::string* why_none = nullptr);

// The word of `words` closest to `word` when it is close enough to be meant, else "".
std::string closest(const std::string& word, const std::vector<std::string>& words);
// " (did you mean 'word'?)" for the closest one, else "".
std::string did_you_mean(const std::string& word, const std::vector<std::string>& words);

// What the help and the manual show below the flags of a command: a line of text and the command
// that it is about, as it would be typed, beginning with "mamba-cpp".
struct Example {
  std::string text, command;
};
void add_examples(CLI::App& app, const std::vector<Example>& examples);
std::vector<Example> examples_of(const CLI::App& app);

// Thrown when the reader of standard output has gone: the program ends quietly.
struct OutputClosed {};
// Writes to standard output, unbuffered. Throws OutputClosed, or io when the disk is full.
void write_output(std::string_view text);
// The same for one line that is a JSON document of its own.
void write_json_line(std::string_view line);
// What is on standard output so far.
enum class Written : uint8_t { kNothing, kJsonLines, kText };
Written written_output();
// Reads up to `count` bytes; fewer only at the end of the file or on an error (std::ferror, errno).
// Throws cancelled once Ctrl-C was pressed.
size_t read_block(std::FILE* file, char* out, size_t count);
// A whole file (or standard input for "-") as bytes; bad_file when it cannot be read or is larger
// than `limit` bytes, saying `where` (a flag); cancelled when Ctrl-C ends the reading.
std::string read_input(const std::string& path, int64_t limit, const char* where = "input");

// Throws io now if a file could not be written at `path` later, and invalid_argument if a folder is
// there; what is there stays as it is.
void expect_writable(const std::string& path);
// The same for a file that may replace none but its like: else invalid_argument, which names the
// flag and `kind`. is_like says whether what is there is one; bad_file of it means no.
void expect_replaceable(const std::string& flag, const std::string& path, const char* kind,
                        const std::function<bool()>& is_like);
// The same for a saved state or conversation. `format` as the metadata of such files have it.
inline constexpr const char *kStateFormat = "mamba-cpp-state", *kChatFormat = "mamba-cpp-chat";
bool has_format(const std::string& path, const char* format);
void expect_state_place(const std::string& flag, const std::string& path, const char* format);

// From now on Ctrl-C only sets a flag and ends a wait for input (EINTR); a second one ends the
// process at once.
void catch_interrupt();
// The same of SIGTERM too, for commands that remove what they have begun to write, or end a report.
void catch_interrupt_and_sigterm();
// From now on these signals end the process again; throws cancelled if one has come meanwhile.
void release_interrupt();
bool interrupted();
// What the program ends with when it was cancelled: 128 + the number of the signal.
int interrupt_exit_code();
// Forgets a Ctrl-C that has been dealt with, and catches the next one.
void clear_interrupt();

}  // namespace mamba::cli
