// The least that serving a model over gRPC costs in any language: C++, one thread for gRPC, OpenVINO's own threads.
//
//     floor 2 squeezenet=model.xml resnet50=other.xml
//
// Serves ModelInfer and ModelStreamInfer on a free port of the loopback interface. Prints the port and serves until it
// is ended. It promises as little as benchmarks/computing_echo.py, its sister in Python: models have one input and one
// output, both of static shape and the output FP32, and run in FP32 on as many streams of one thread each as the first
// argument says. Nothing is parsed, checked, limited or counted: the model's name is the first field of a message, its
// last bytes are the tensor, and a run that fails is never answered. A model that takes less than INLINE runs where
// gRPC's events are taken, as inferd runs it.

#include <grpcpp/alarm.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <openvino/openvino.hpp>

namespace {

using Clock = std::chrono::steady_clock;
using Tag = std::function<void(bool)>;
using Bytes = std::vector<grpc::Slice>;

constexpr auto INLINE = std::chrono::microseconds(100);
constexpr int ACCEPTING = 64;  // calls that gRPC may hand over at once
constexpr size_t LONGEST_NAME = 128;  // with what stands before it
constexpr char UNARY[] = "/inference.GRPCInferenceService/ModelInfer";
constexpr char STREAM[] = "/inference.GRPCInferenceService/ModelStreamInfer";

std::unique_ptr<grpc::ServerCompletionQueue> queue;
grpc::AsyncGenericService service;

// -- the protocol --------------------------------------------------------------

void put_varint(std::string& into, uint64_t value) {
  for (; value > 127; value >>= 7) into.push_back(static_cast<char>(value | 128));
  into.push_back(static_cast<char>(value));
}

void put(std::string& into, int number, const std::string& bytes, size_t more = 0) {
  into.push_back(static_cast<char>(number << 3 | 2));
  put_varint(into, bytes.size() + more);
  into += bytes;
}

// A ModelInferResponse up to the bytes of its tensor, with which it ends.
std::string response_head(const std::string& model, const std::string& output, const ov::Shape& shape, size_t size) {
  std::string dims, tensor, head;
  for (size_t dim : shape) put_varint(dims, dim);
  put(tensor, 1, output);
  put(tensor, 2, "FP32");
  put(tensor, 3, dims);
  put(head, 1, model);
  put(head, 2, "1");
  put(head, 5, tensor);
  put(head, 6, "", size);
  return head;
}

// The same as a ModelStreamInferResponse.
std::string streamed(const std::string& head, size_t size) {
  std::string whole;
  put(whole, 2, head, size);
  return whole;
}

// The last `size` bytes of the message.
void copy_end(const Bytes& slices, size_t size, void* into) {
  size_t total = 0;
  for (const auto& slice : slices) total += slice.size();
  size_t skip = total > size ? total - size : 0;
  auto* to = static_cast<char*>(into);
  for (const auto& slice : slices) {
    size_t from = std::min(skip, slice.size());
    std::memcpy(to, slice.begin() + from, slice.size() - from);
    to += slice.size() - from;
    skip -= from;
  }
}

Bytes slices_of(const grpc::ByteBuffer& message) {
  Bytes slices(1);
  if (!message.TrySingleSlice(&slices[0]).ok() && !message.Dump(&slices).ok()) slices.clear();
  return slices;
}

// -- models --------------------------------------------------------------------

// A message that waits for its answer, or has it.
struct Question {
  Bytes message;
  bool in_stream;
  bool answered = false;
  grpc::ByteBuffer answer;
  std::function<void()> on_answer;
};

// An infer request. Its completion is posted to gRPC's queue, since OpenVINO may not run it again before its callback
// has returned.
struct Run {
  explicit Run(ov::CompiledModel& compiled) : request(compiled.create_infer_request()) {
    input = request.get_input_tensor();
    output = request.get_output_tensor();
  }
  ov::InferRequest request;
  ov::Tensor input, output;
  std::shared_ptr<Question> question;
  std::unique_ptr<grpc::Alarm> alarm;
  Tag ended;
};

class Model {
 public:
  Model(ov::Core& core, const std::string& name, const std::string& file, int threads) {
    compiled_ = core.compile_model(file, "CPU",
                                   {{ov::num_streams.name(), threads},
                                    {ov::inference_num_threads.name(), threads},
                                    {ov::hint::execution_mode.name(), ov::hint::ExecutionMode::ACCURACY},
                                    {ov::hint::inference_precision.name(), ov::element::f32}});
    for (int number = 0; number < 2 * threads; ++number) {
      runs_.push_back(std::make_unique<Run>(compiled_));
      Run* run = runs_.back().get();
      std::memset(run->input.data(), 0, run->input.get_byte_size());
      idle_.push_back(run);
    }
    size_t size = runs_[0]->output.get_byte_size();
    unary_head_ = response_head(name, compiled_.output().get_any_name(), compiled_.output().get_shape(), size);
    stream_head_ = streamed(unary_head_, size);
    inline_ = fastest() < INLINE;
    for (auto& run : runs_) {
      if (inline_) break;
      Run* self = run.get();
      self->ended = [this, self](bool) { ended(*self); };
      self->request.set_callback([self](std::exception_ptr problem) {
        if (problem) return;
        self->alarm = std::make_unique<grpc::Alarm>();
        self->alarm->Set(queue.get(), gpr_time_0(GPR_CLOCK_REALTIME), &self->ended);
      });
    }
  }

  void ask(std::shared_ptr<Question> question) {
    if (inline_) {
      Run& run = *runs_[0];
      load(run, std::move(question));
      run.request.infer();
      answer(run);
    } else if (idle_.empty()) {
      waiting_.push_back(std::move(question));
    } else {
      Run* run = idle_.back();
      idle_.pop_back();
      start(*run, std::move(question));
    }
  }

 private:
  Clock::duration fastest() {
    auto best = Clock::duration::max();
    for (int number = 0; number < 20; ++number) {
      auto begun = Clock::now();
      runs_[0]->request.infer();
      best = std::min(best, Clock::now() - begun);
    }
    return best;
  }

  void load(Run& run, std::shared_ptr<Question> question) {
    copy_end(question->message, run.input.get_byte_size(), run.input.data());
    question->message.clear();
    run.question = std::move(question);
  }

  void start(Run& run, std::shared_ptr<Question> question) {
    load(run, std::move(question));
    run.request.start_async();
  }

  void ended(Run& run) {
    answer(run);
    if (waiting_.empty()) {
      idle_.push_back(&run);
    } else {
      auto next = std::move(waiting_.front());
      waiting_.pop_front();
      start(run, std::move(next));
    }
  }

  void answer(Run& run) {
    auto question = std::move(run.question);
    const std::string& head = question->in_stream ? stream_head_ : unary_head_;
    size_t size = run.output.get_byte_size();
    grpc::Slice whole(head.size() + size);
    auto* to = const_cast<uint8_t*>(whole.begin());
    std::memcpy(to, head.data(), head.size());
    std::memcpy(to + head.size(), run.output.data(), size);
    question->answer = grpc::ByteBuffer(&whole, 1);
    question->answered = true;
    question->on_answer();
  }

  ov::CompiledModel compiled_;
  std::vector<std::unique_ptr<Run>> runs_;
  std::vector<Run*> idle_;
  std::deque<std::shared_ptr<Question>> waiting_;
  std::string unary_head_, stream_head_;
  bool inline_ = false;
};

std::unordered_map<std::string, std::unique_ptr<Model>> models;

Model* model_of(const Bytes& message) {
  // A tag, the length in one byte, the name; they may lie in several slices.
  std::string start;
  for (const auto& slice : message) {
    if (start.size() >= LONGEST_NAME) break;
    start.append(reinterpret_cast<const char*>(slice.begin()), std::min(slice.size(), LONGEST_NAME));
  }
  if (start.size() < 2) return nullptr;
  auto found = models.find(start.substr(2, static_cast<uint8_t>(start[1])));
  return found == models.end() ? nullptr : found->second.get();
}

// -- calls ---------------------------------------------------------------------

// One call, which deletes itself when it has ended and no run is about to answer it.
class Call {
 public:
  Call() {
    service.RequestCall(&context_, &io_, queue.get(), queue.get(), &accepted_);
  }

 private:
  void accepted(bool ok) {
    if (!ok) return;
    new Call;
    if (context_.method() == UNARY || context_.method() == STREAM) {
      in_stream_ = context_.method() == STREAM;
      io_.Read(&message_, &read_);
    } else {
      io_.Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, context_.method()), &finished_);
    }
  }

  void read(bool ok) {
    if (!ok) {
      reading_ = false;
      return end_when_answered();
    }
    Bytes slices = slices_of(message_);
    Model* model = model_of(slices);
    if (model == nullptr) {
      status_ = grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model");
      reading_ = false;
      return end_when_answered();
    }
    auto question = std::make_shared<Question>(Question{std::move(slices), in_stream_, false, {}, {}});
    question->on_answer = [this] { in_stream_ ? write_next() : answer(); };
    asked_.push_back(question);
    model->ask(std::move(question));
    if (in_stream_) io_.Read(&message_, &read_);
  }

  // Unary.
  void answer() {
    io_.WriteAndFinish(asked_.front()->answer, grpc::WriteOptions(), grpc::Status::OK, &finished_);
  }

  // Streams are answered in order.
  void write_next() {
    if (writing_ || asked_.empty() || !asked_.front()->answered) return end_when_answered();
    writing_ = true;
    io_.Write(asked_.front()->answer, &written_);
  }

  void written(bool) {  // a stream that was cancelled takes no more: the questions go on, unread
    writing_ = false;
    asked_.pop_front();
    write_next();
  }

  void end_when_answered() {
    if (!reading_ && !writing_ && asked_.empty()) io_.Finish(status_, &finished_);
  }

  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter io_{&context_};
  grpc::ByteBuffer message_;
  std::deque<std::shared_ptr<Question>> asked_;
  grpc::Status status_;
  bool in_stream_ = false, reading_ = true, writing_ = false;
  Tag accepted_ = [this](bool ok) { accepted(ok); };
  Tag read_ = [this](bool ok) { read(ok); };
  Tag written_ = [this](bool ok) { written(ok); };
  Tag finished_ = [this](bool) { delete this; };
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: floor THREADS NAME=FILE...\n";
    return 2;
  }
  int port = 0;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterAsyncGenericService(&service);
  queue = builder.AddCompletionQueue();
  ov::Core core;
  for (int number = 2; number < count; ++number) {
    std::string argument = arguments[number];
    size_t equals = argument.find('=');
    std::string name = argument.substr(0, equals);
    models[name] = std::make_unique<Model>(core, name, argument.substr(equals + 1), std::stoi(arguments[1]));
  }
  auto server = builder.BuildAndStart();
  if (!server) return 1;
  for (int number = 0; number < ACCEPTING; ++number) new Call;
  std::cout << port << std::endl;
  void* tag;
  for (bool ok; queue->Next(&tag, &ok);) (*static_cast<Tag*>(tag))(ok);
}
