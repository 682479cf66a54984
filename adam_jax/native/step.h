// One Adam step over arrays: the arithmetic on plain pointers, without XLA.
//
// The reference is the composed chain, adam_jax.adamw. Operations, their order and their
// roundings are those that XLA's CPU backend makes of it.

#ifndef ADAM_JAX_NATIVE_STEP_H_
#define ADAM_JAX_NATIVE_STEP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace adam_jax {

enum class Dtype { kFloat32, kBfloat16, kInt8, kUint8 };

// How a new bfloat16 parameter is rounded.
enum class Rounding { kNearest, kStochastic };

// What a step may sum over the elements of each leaf, for figures; native.py names the
// sums in this order. Gradients are as they are given, parameters and moments as they are
// stored, the latter after the step; the update is what is added to the parameter.
enum Sum {
  kGradSquare,
  kNonfinite,  // how many gradients are infinite or NaN
  kParamSquare,
  kUpdateSquare,
  kUpdateSize,
  kLargeUpdate,  // how many are `Leaf::large_update` or more
  kMoved,        // how many updates are not 0
  kSwallowed,    // how many of these leave the parameter as it was
  kSignal,       // |mu| / sqrt(nu), where nu is not 0
  kHasSignal,    // how many nu are greater than 0
  kSums
};

// What is done with leaves.
enum class Work {
  kStep,
  kLoad,   // the one moment that is given is written to `out`, as float32
  kStore,  // the float32 values in `param` are stored as the one moment that has an `out`
  kSum,    // sums of what is given, float32; `out` holds the update, which is only read
};

// How it is done.
struct Manner {
  Work work = Work::kStep;  // all else is of a step
  Rounding rounding = Rounding::kNearest;
  bool nesterov = false;
  bool takes = true;  // else nothing is written, and updates are 0
  bool sums = false;
};

// The scalars of one step, known at run time. native.py packs them in this order.
struct Scalars {
  float b1, one_minus_b1;
  float b2, one_minus_b2;
  float learning_rate;
  float eps, eps_root;
  float weight_decay;
  float mu_weight, nu_weight;  // 1 without bias correction
  float look_ahead;            // nesterov: weight of mu / its weight after a step
};

// A moment before and after the step; `out` may be `in`.
struct Moment {
  const void* in = nullptr;
  void* out = nullptr;
  Dtype dtype = Dtype::kFloat32;
  // For 8-bit codes: exponents, `blocks` of them in each row.
  const uint8_t* scales_in = nullptr;
  uint8_t* scales_out = nullptr;
  int64_t blocks = 0;
  uint32_t key = 0;  // for the random bits, from random_key
};

// How a leaf lies in the one that it was cut from: its last axis, and its last two.
struct Piece {
  int64_t row = 0, plane = 0;  // their elements; 0 if the leaf was not cut
  int64_t whole_row = 0, whole_plane = 0;  // the same of the whole

  // How many of these elements follow each other in the whole.
  int64_t run(int64_t elements) const {
    if (row != whole_row) return row;
    return plane != whole_plane ? plane : elements;
  }

  // The position of an element in the whole, from that of the first.
  int64_t position(int64_t i) const {
    if (row == 0) return i;
    return i / plane * whole_plane + i % plane / row * whole_row + i % row;
  }
};

struct Leaf {
  // Blocks of 8-bit codes run along the columns; other leaves may be one row.
  int64_t rows = 0, columns = 0;
  const void* param = nullptr;
  Dtype param_dtype = Dtype::kFloat32;
  const void* grad = nullptr;
  Dtype grad_dtype = Dtype::kFloat32;
  Moment mu, nu;
  void* out = nullptr;  // of param_dtype; may be `param`
  bool decays = false;
  uint32_t param_key = 0;  // for Rounding::kStochastic
  float large_update = 0;  // for kLargeUpdate
  Piece piece;
};

// Sums as they grow, side by side: those of element i of a chunk are in lane i % kLanes.
constexpr int kLanes = 32;
struct Sums {
  alignas(64) float lanes[kSums][kLanes];
};

// Measured: with unaligned buffers, 8-bit moments take 5% longer.
constexpr std::align_val_t kCacheLine{64};

struct AlignedDelete {
  void operator()(float* floats) const { operator delete[](floats, kCacheLine); }
};

// Folds the words into the key that random bits are hashed with.
uint32_t random_key(const uint32_t* words, size_t count);

// A step over many leaves, cut into tasks that may run in any order on any thread.
class Step {
 public:
  Step(std::vector<Leaf> leaves, const Scalars& scalars, Manner manner);

  int64_t tasks() const { return tasks_; }
  int64_t elements() const { return elements_; }

  // Runs tasks as `next()` numbers them, until it returns a number out of range. Returns
  // how many it did.
  template <typename Next>
  int64_t run(Next next) const {
    Worker worker(*this);
    int64_t done = 0;
    for (int64_t task = next(); task < tasks_; task = next(), ++done) worker.run(task);
    return done;
  }

  // Writes the kSums sums over a leaf, once all tasks are done. They do not depend on
  // which thread did what.
  void read_sums(size_t leaf, float* sums) const;

 private:
  // How a leaf is cut into `chunks`: each `span` of it into `pieces` of `size` or less.
  struct Cut {
    int64_t first_chunk, chunks, span, size, pieces;
  };

  // One thread's buffers, and its floating-point mode while they exist.
  class Worker {
   public:
    explicit Worker(const Step& step);
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;
    void run(int64_t task);

   private:
    void keep_sums(int64_t task, size_t leaf);

    const Step& step_;
    Sums sums_ = {};  // over one leaf, in this task
    std::unique_ptr<float[], AlignedDelete> buffers_;
    uint64_t mode_;
  };

  std::vector<Leaf> leaves_;
  std::vector<Cut> cuts_;
  Scalars scalars_;
  Manner manner_;
  // Of task t and leaf i, the sums number t + i.
  std::unique_ptr<double[]> sums_;
  int64_t chunks_ = 0, tasks_ = 0, elements_ = 0;
  int64_t largest_chunk_ = 0;
};

}  // namespace adam_jax

#endif  // ADAM_JAX_NATIVE_STEP_H_
