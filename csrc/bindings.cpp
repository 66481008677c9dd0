// The one file that knows pybind11: unpacks integers into the structs of fastmix.h, checks index values, calls.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "build_info.h"
#include "fastmix.h"
#include "parallel.h"

namespace py = pybind11;
using fastmix::Attention;
using fastmix::Cut;
using fastmix::DType;
using fastmix::Energy;
using fastmix::FineSaliency;
using fastmix::Flip;
using fastmix::Loss;
using fastmix::Mix;
using fastmix::Queue;
using fastmix::Saliency;
using fastmix::SaliencyBox;
using fastmix::SpectralMask;
using fastmix::Transport;

namespace {

using Address = uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Where a call runs: `place` is a number of threads if `device` is negative, else a CUDA stream.
Queue queue(int device, Address place) {
  return device < 0 ? Queue{device, static_cast<int>(place), nullptr} : Queue{device, 0, pointer<void>(place)};
}

// Before anything is written: every partner must exist.
void check_index(const char* op, const int64_t* index, int64_t count, int64_t n) {
  for (int64_t i = 0; i < count; ++i)
    if (index[i] < 0 || index[i] >= n)
      throw py::value_error("fastmix." + std::string(op) + ": index must lie in [0, " + std::to_string(n) + "), got " +
                            std::to_string(index[i]) + " at position " + std::to_string(i));
}

Mix batch(int64_t n, int64_t channels, int64_t height, int64_t width, bool channels_last, int64_t draws, int device,
          Address place) {
  Mix m{};
  m.n = n, m.draws = draws, m.channels = channels, m.height = height, m.width = width;
  m.channels_last = channels_last, m.queue = queue(device, place);
  return m;
}

void set_weights(Mix& m, Address lam, bool per_sample) { m.lam = pointer<void>(lam), m.lam_per_sample = per_sample; }

void set_mask(Mix& m, Address mask, int64_t height, int64_t width, int mode, bool sigmoid, bool sigmoid_first) {
  m.mask = pointer<void>(mask), m.mask_height = height, m.mask_width = width;
  m.mode = mode, m.sigmoid = sigmoid, m.sigmoid_first = sigmoid_first;
}

// After the images: every block must exist. CUDA kernels leave a block alone whose source does not.
void set_plans(Mix& m, Address plan, Address partner_plan, int64_t height, int64_t width) {
  m.plan = pointer<int32_t>(plan), m.partner_plan = pointer<int32_t>(partner_plan);
  m.plan_height = height, m.plan_width = width;
  if (m.queue.device >= 0) return;
  for (const auto& [name, blocks] : {std::pair{"plan", m.plan}, std::pair{"partner_plan", m.partner_plan}})
    for (int64_t i = 0; blocks && i < m.outputs() * height * width; ++i)
      if (blocks[i] >= height * width)
        throw py::value_error("fastmix.mask_blend: " + std::string(name) + " must lie below " +
                              std::to_string(height * width) + ", got " + std::to_string(blocks[i]) + " at position " +
                              std::to_string(i));
}

void set_images(Mix& m, const char* op, Address x, int x_type, Address index, Address scale, Address shift) {
  m.x = pointer<void>(x), m.x_type = static_cast<DType>(x_type), m.index = pointer<int64_t>(index);
  m.scale = pointer<void>(scale), m.shift = pointer<void>(shift);
  if (m.queue.device < 0) check_index(op, m.index, m.outputs(), m.n);  // CUDA kernels look themselves, and write NaN
}

void set_grad(Mix& m, Address grad, int type) { m.grad = pointer<void>(grad), m.grad_type = static_cast<DType>(type); }

void set_inverse(Mix& m, Address order, Address start) {
  m.order = pointer<int64_t>(order), m.start = pointer<int64_t>(start);
}

void set_paste(Mix& m, Address box, Address source, int resize) {
  m.box = pointer<int32_t>(box), m.source = pointer<int32_t>(source), m.resize = resize;
}

void set_out(Mix& m, Address out, int type) { m.out = pointer<void>(out), m.out_type = static_cast<DType>(type); }

template <class Args>
void run_on_cpu(void (*kernel)(const Args&), const Args& args) {
  py::gil_scoped_release release;
  kernel(args);
}

#if FASTMIX_HAVE_CUDA
template <class Args>
void run_on_cuda(const char* op, int (*kernel)(const Args&), const Args& m) {
  if (const int error = kernel(m))
    throw std::runtime_error("fastmix." + std::string(op) +
                             ": CUDA launch failed: " + fastmix::cuda::error_text(error));
}
#define RUN(op, m) m.queue.device < 0 ? run_on_cpu(fastmix::op, m) : run_on_cuda(#op, fastmix::cuda::op, m)
#else
#define RUN(op, m) run_on_cpu(fastmix::op, m)
#endif

#define BATCH int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last, int64_t draws, int device, Address place
#define GIVEN_BATCH batch(n, c, h, w, channels_last, draws, device, place)
#define IMAGES Address x, int x_type, Address index, Address scale, Address shift
#define GRAD Address grad, int grad_type
#define INVERSE Address order, Address start
#define LAM Address lam, bool per_sample
#define MASK Address mask, int64_t mask_h, int64_t mask_w, int mode, bool sigmoid, bool sigmoid_first
#define PASTE Address box, Address source, int resize
#define PLANS Address plan, Address partner_plan, int64_t plan_h, int64_t plan_w
#define OUT Address out, int out_type

void bind_blends(py::module_& module) {
  module.def("blend", [](BATCH, IMAGES, LAM, OUT) {
    Mix m = GIVEN_BATCH;
    set_images(m, "blend", x, x_type, index, scale, shift), set_weights(m, lam, per_sample), set_out(m, out, out_type);
    RUN(blend, m);
  });
  module.def("blend_grad_x", [](BATCH, GRAD, INVERSE, LAM, OUT) {
    Mix m = GIVEN_BATCH;
    set_grad(m, grad, grad_type), set_inverse(m, order, start), set_weights(m, lam, per_sample);
    set_out(m, out, out_type);
    RUN(blend_grad_x, m);
  });
  module.def("blend_grad_lam", [](BATCH, IMAGES, GRAD, LAM, OUT, Address workspace) {
    Mix m = GIVEN_BATCH;
    set_images(m, "blend", x, x_type, index, scale, shift), set_grad(m, grad, grad_type);
    set_weights(m, lam, per_sample), set_out(m, out, out_type);
    m.workspace = pointer<float>(workspace);
    RUN(blend_grad_lam, m);
  });
  module.def("box_blend", [](BATCH, IMAGES, Address box, LAM, OUT) {
    Mix m = GIVEN_BATCH;
    set_images(m, "box_blend", x, x_type, index, scale, shift), set_weights(m, lam, per_sample);
    set_out(m, out, out_type), m.box = pointer<int32_t>(box);
    RUN(box_blend, m);
  });
  module.def("box_blend_grad_x", [](BATCH, GRAD, INVERSE, Address box, LAM, OUT) {
    Mix m = GIVEN_BATCH;
    set_grad(m, grad, grad_type), set_inverse(m, order, start), set_weights(m, lam, per_sample);
    set_out(m, out, out_type), m.box = pointer<int32_t>(box);
    RUN(box_blend_grad_x, m);
  });
  module.def("box_blend_grad_lam", [](BATCH, IMAGES, GRAD, Address box, LAM, OUT, Address workspace) {
    Mix m = GIVEN_BATCH;
    set_images(m, "box_blend", x, x_type, index, scale, shift), set_grad(m, grad, grad_type);
    set_weights(m, lam, per_sample), set_out(m, out, out_type), m.box = pointer<int32_t>(box),
                                                                m.workspace = pointer<float>(workspace);
    RUN(box_blend_grad_lam, m);
  });
  module.def("box_paste", [](BATCH, IMAGES, PASTE, LAM, OUT) {
    Mix m = GIVEN_BATCH;
    set_images(m, "box_blend", x, x_type, index, scale, shift), set_weights(m, lam, per_sample);
    set_paste(m, box, source, resize), set_out(m, out, out_type);
    RUN(box_paste, m);
  });
  module.def("box_paste_grad_x", [](BATCH, GRAD, INVERSE, PASTE, LAM, OUT) {
    Mix m = GIVEN_BATCH;
    set_grad(m, grad, grad_type), set_inverse(m, order, start), set_weights(m, lam, per_sample);
    set_paste(m, box, source, resize), set_out(m, out, out_type);
    RUN(box_paste_grad_x, m);
  });
  module.def("mask_blend", [](BATCH, IMAGES, MASK, PLANS, OUT, Address mean, Address workspace) {
    Mix m = GIVEN_BATCH;
    set_images(m, "mask_blend", x, x_type, index, scale, shift);
    set_plans(m, plan, partner_plan, plan_h, plan_w);
    set_mask(m, mask, mask_h, mask_w, mode, sigmoid, sigmoid_first), set_out(m, out, out_type);
    m.mean = pointer<void>(mean), m.workspace = pointer<float>(workspace);
    RUN(mask_blend, m);
  });
  module.def("mask_blend_grad_x", [](BATCH, GRAD, INVERSE, MASK, OUT) {
    Mix m = GIVEN_BATCH;
    set_grad(m, grad, grad_type), set_inverse(m, order, start);
    set_mask(m, mask, mask_h, mask_w, mode, sigmoid, sigmoid_first), set_out(m, out, out_type);
    RUN(mask_blend_grad_x, m);
  });
  module.def("mask_blend_grad_mask", [](BATCH, IMAGES, GRAD, MASK, Address grad_mean, Address out, Address workspace) {
    Mix m = GIVEN_BATCH;
    set_images(m, "mask_blend", x, x_type, index, scale, shift), set_grad(m, grad, grad_type);
    set_mask(m, mask, mask_h, mask_w, mode, sigmoid, sigmoid_first), m.out = pointer<void>(out);
    m.grad_mean = pointer<void>(grad_mean), m.workspace = pointer<float>(workspace);
    RUN(mask_blend_grad_mask, m);
  });
}

#if FASTMIX_HAVE_CUDA
// Floats of workspace that a CUDA call will take, by the name of the call.
int64_t workspace(const std::string& call, BATCH, int x_type, int other_type, int64_t mask_h, int64_t mask_w,
                  int mode) {
  Mix m = GIVEN_BATCH;
  m.x_type = static_cast<DType>(x_type), m.out_type = m.grad_type = static_cast<DType>(other_type);
  m.mask_height = mask_h, m.mask_width = mask_w, m.mode = mode;
  if (call == "blend_grad_lam") return fastmix::cuda::blend_grad_lam_workspace(m);
  if (call == "box_blend_grad_lam") return fastmix::cuda::box_blend_grad_lam_workspace(m);
  if (call == "mask_blend") return fastmix::cuda::mask_blend_workspace(m);
  return fastmix::cuda::mask_blend_grad_mask_workspace(m);
}
#endif

#define ATTENTION                                                                                            \
  int64_t n, int64_t r, int64_t d, int64_t draws, int threads, int type, double scale, Address q, Address k, \
      Address key_bias

Attention attention(ATTENTION) {
  Attention a{};
  a.n = n, a.draws = draws, a.positions = r, a.dim = d, a.threads = threads;
  a.type = static_cast<DType>(type), a.scale = scale;
  a.q = pointer<void>(q), a.k = pointer<void>(k), a.key_bias = pointer<void>(key_bias);
  return a;
}

void bind_flip(py::module_& module) {
  module.def("flip_blend", [](int64_t n, int64_t planes, int64_t height, int64_t width, int64_t inner, int device,
                              Address place, Address x, int x_type, Address lam, Address lam_b, bool per_sample,
                              Address box, bool adjoint, Address out) {
    Flip f{};
    f.n = n, f.planes = planes, f.height = height, f.width = width, f.inner = inner, f.queue = queue(device, place);
    f.type = static_cast<DType>(x_type), f.x = pointer<void>(x), f.out = pointer<void>(out);
    f.lam = pointer<void>(lam), f.lam_b = pointer<void>(lam_b), f.lam_per_sample = per_sample;
    f.box = pointer<int32_t>(box), f.adjoint = adjoint;
    run_on_cpu(fastmix::flip_blend, f);
  });
}

#define GIVEN_ATTENTION attention(n, r, d, draws, threads, type, scale, q, k, key_bias)

void bind_attention(py::module_& module) {
  module.def("pair_attention", [](ATTENTION, Address index, Address v, Address out, Address lse) {
    Attention a = GIVEN_ATTENTION;
    a.index = pointer<int64_t>(index), a.b = pointer<void>(v), a.rows = pointer<void>(out);
    a.lse = pointer<void>(lse);
    check_index("pair_attention", a.index, n * draws, n);
    run_on_cpu(fastmix::pair_attention, a);
  });
  module.def("pair_attention_cols", [](ATTENTION, Address index, Address v, Address lse, Address out) {
    Attention a = GIVEN_ATTENTION;
    a.index = pointer<int64_t>(index), a.a = pointer<void>(v), a.cols = pointer<void>(out);
    a.lse = pointer<void>(lse);
    check_index("pair_attention", a.index, n * draws, n);
    run_on_cpu(fastmix::pair_attention_cols, a);
  });
  module.def("pair_attention_grad", [](ATTENTION, INVERSE, Address lse, Address left, Address right, Address means,
                                       Address dq, Address dk, int grad_type, Address dbias, Address cols) {
    Attention a = GIVEN_ATTENTION;
    a.order = pointer<int64_t>(order), a.start = pointer<int64_t>(start), a.lse = pointer<void>(lse);
    a.a = pointer<void>(left), a.b = pointer<void>(right), a.c = pointer<void>(means);
    a.dq = pointer<void>(dq), a.dk = pointer<void>(dk), a.grad_type = static_cast<DType>(grad_type);
    a.dbias = pointer<void>(dbias), a.cols = pointer<void>(cols);
    run_on_cpu(fastmix::pair_attention_grad, a);
  });
}

void bind_saliency(py::module_& module) {
  module.def("saliency_pool", [](BATCH, Address grad, int type, int64_t rows, int64_t columns, int64_t parts,
                                 Address means, Address out) {
    const Mix m = GIVEN_BATCH;
    Saliency s{};
    s.n = m.n, s.channels = m.channels, s.height = m.height, s.width = m.width;
    s.rows = rows, s.columns = columns, s.channels_last = m.channels_last, s.queue = m.queue;
    s.type = static_cast<DType>(type), s.grad = pointer<void>(grad), s.parts = parts;
    s.means = pointer<double>(means), s.out = pointer<float>(out);
    RUN(saliency_pool, s);
  });
  module.def("puzzle_energy", [](BATCH, IMAGES, Address saliency, int64_t rows, int64_t columns, int64_t side, LAM,
                                 int labels, double beta, double gamma, double eta, Address cells, Address unary,
                                 Address weight_y, Address weight_x) {
    Mix m = GIVEN_BATCH;
    set_images(m, "puzzle_energy", x, x_type, index, scale, shift);
    Energy e{};
    e.n = m.n, e.channels = m.channels, e.height = m.height, e.width = m.width;
    e.rows = rows, e.columns = columns, e.side = side, e.channels_last = m.channels_last, e.queue = m.queue;
    e.type = m.x_type, e.x = m.x, e.index = m.index, e.scale = m.scale, e.shift = m.shift;
    e.saliency = pointer<void>(saliency), e.lam = pointer<double>(lam), e.lam_per_sample = per_sample;
    e.labels = labels, e.beta = beta, e.gamma = gamma, e.eta = eta, e.cells = pointer<void>(cells);
    e.unary = pointer<int32_t>(unary), e.weight_y = pointer<int32_t>(weight_y);
    e.weight_x = pointer<int32_t>(weight_x);
    RUN(puzzle_energy, e);
  });
}

void bind_maps(py::module_& module) {
  module.def("fine_grained_saliency", [](BATCH, Address x, int type, Address scale, Address shift, bool red_first,
                                         Address workspace, Address out) {
    const Mix m = GIVEN_BATCH;
    FineSaliency s{};
    s.n = m.n, s.channels = m.channels, s.height = m.height, s.width = m.width;
    s.channels_last = m.channels_last, s.queue = m.queue;
    s.type = static_cast<DType>(type), s.x = pointer<void>(x), s.red_first = red_first;
    s.scale = pointer<float>(scale), s.shift = pointer<float>(shift), s.workspace = pointer<char>(workspace);
    s.out = pointer<float>(out);
    RUN(fine_grained_saliency, s);
  });
  module.def("saliency_box", [](int64_t n, int height, int width, int device, Address place, int image_height,
                                int image_width, Address saliency, Address lam, Address window, bool per_sample,
                                bool smallest, Address sums, Address box) {
    SaliencyBox s{};
    s.n = n, s.height = height, s.width = width, s.queue = queue(device, place);
    s.image_height = image_height, s.image_width = image_width, s.saliency = pointer<float>(saliency);
    s.lam = pointer<double>(lam), s.window = pointer<int32_t>(window), s.per_sample = per_sample;
    s.smallest = smallest, s.sums = pointer<double>(sums), s.box = pointer<int32_t>(box);
    RUN(saliency_box, s);
  });
  module.def("spectral_mask", [](int64_t n, int64_t height, int64_t width, int device, Address place, int64_t rows,
                                 int64_t columns, Address noise, bool noise_f64, double decay, bool released,
                                 Address field, Address count, int64_t soft, Address out) {
    SpectralMask s{};
    s.n = n, s.height = height, s.width = width, s.queue = queue(device, place);
    s.rows = rows, s.columns = columns, s.noise = pointer<void>(noise), s.noise_f64 = noise_f64;
    s.released = released, s.decay = decay, s.field = pointer<float>(field);
    s.count = pointer<int64_t>(count), s.soft = soft, s.out = pointer<float>(out);
    RUN(spectral_mask, s);
  });
}

void bind_cut(py::module_& module) {
  module.def("grid_cut", [](int64_t n, int64_t height, int64_t width, int labels, bool swap, int device, Address place,
                            Address unary, Address weight_y, Address weight_x, Address out, Address energy,
                            Address workspace) {
    Cut c{};
    c.n = n, c.height = height, c.width = width, c.labels = labels, c.swap = swap, c.queue = queue(device, place);
    c.unary = pointer<int32_t>(unary), c.weight_y = pointer<int32_t>(weight_y);
    c.weight_x = pointer<int32_t>(weight_x), c.out = pointer<int32_t>(out), c.energy = pointer<int64_t>(energy);
    c.workspace = pointer<int32_t>(workspace);
    RUN(grid_cut, c);
  });
#if FASTMIX_HAVE_CUDA
  module.def("grid_cut_workspace", [](int64_t n, int64_t height, int64_t width, int labels, bool swap) {
    Cut c{};
    c.n = n, c.height = height, c.width = width, c.labels = labels, c.swap = swap;
    return fastmix::cuda::grid_cut_workspace(c);
  });
#endif
}

void bind_transport(py::module_& module) {
  module.def("transport", [](int64_t n, int height, int width, int device, Address place, double eps, bool exact,
                             Address visible, Address saliency, Address source) {
    Transport t{};
    t.n = n, t.height = height, t.width = width, t.queue = queue(device, place), t.eps = eps, t.exact = exact;
    t.visible = pointer<uint8_t>(visible), t.saliency = pointer<float>(saliency), t.source = pointer<int32_t>(source);
    RUN(transport, t);
  });
}

#define LOSS                                                                                                          \
  int64_t n, int64_t classes, int64_t stride, int threads, int type, Address logits, int target_type, Address target, \
      Address target_b, Address lam, bool lam_per_row, Address lam_b, bool lam_b_per_row, int64_t ignore_index,       \
      double smoothing, double decouple, double threshold, bool sum_classes, int reduction, Address stats,            \
      Address scale
#define GIVEN_LOSS                                                                                            \
  loss(op, n, classes, stride, threads, type, logits, target_type, target, target_b, lam, lam_per_row, lam_b, \
       lam_b_per_row, ignore_index, smoothing, decouple, threshold, sum_classes, reduction, stats, scale)

// Before anything is written: every label must exist or be left out. Dense targets have a type that is not negative.
void check_labels(const char* op, const char* name, const Loss& l, const void* labels) {
  for (int64_t i = 0; !l.dense && i < l.n; ++i) {
    const int64_t label = static_cast<const int64_t*>(labels)[i];
    if ((label < 0 || label >= l.classes) && label != l.ignore_index)
      throw py::value_error("fastmix." + std::string(op) + ": " + name + " must lie in [0, " +
                            std::to_string(l.classes) + ") or be " + std::to_string(l.ignore_index) + ", got " +
                            std::to_string(label) + " at position " + std::to_string(i));
  }
}

Loss loss(const char* op, LOSS) {
  Loss l{};
  l.n = n, l.classes = classes, l.stride = stride, l.threads = threads, l.type = static_cast<DType>(type);
  l.logits = pointer<void>(logits), l.dense = target_type >= 0, l.target_type = static_cast<DType>(target_type);
  l.target = pointer<void>(target), l.target_b = pointer<void>(target_b);
  l.lam = pointer<void>(lam), l.lam_per_row = lam_per_row;
  l.lam_b = pointer<void>(lam_b), l.lam_b_per_row = lam_b_per_row, l.ignore_index = ignore_index;
  l.smoothing = smoothing, l.decouple = decouple, l.threshold = threshold, l.sum_classes = sum_classes;
  l.reduction = reduction, l.stats = pointer<void>(stats), l.scale = pointer<void>(scale);
  check_labels(op, "target", l, l.target), check_labels(op, "target_b", l, l.target_b);
  return l;
}

void bind_loss(py::module_& module, const char* op, const char* op_grad, void (*kernel)(const Loss&),
               void (*kernel_grad)(const Loss&)) {
  module.def(op, [op, kernel](LOSS, Address out) {
    Loss l = GIVEN_LOSS;
    l.out = pointer<void>(out);
    run_on_cpu(kernel, l);
  });
  module.def(op_grad, [op, kernel_grad](LOSS, Address grad, Address grad_logits) {
    Loss l = GIVEN_LOSS;
    l.grad = pointer<void>(grad), l.grad_logits = pointer<void>(grad_logits);
    run_on_cpu(kernel_grad, l);
  });
}

void bind_losses(py::module_& module) {
#define BIND_LOSS(op) bind_loss(module, #op, #op "_grad", fastmix::op, fastmix::op##_grad)
  BIND_LOSS(mix_cross_entropy);
  BIND_LOSS(soft_cross_entropy);
  BIND_LOSS(mix_binary_cross_entropy);
}

py::dict build_info() {
  py::dict info;
  info["version"] = FASTMIX_VERSION;
  info["compiler"] = FASTMIX_COMPILER;
  info["flags"] = FASTMIX_FLAGS;
  info["nvcc"] = FASTMIX_NVCC;
  info["cuda_archs"] = FASTMIX_CUDA_ARCHS_STR;
  info["isa_levels"] = FASTMIX_ISA_STR;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of fastmix: raw pointers, sizes and dtype tags; see csrc/fastmix.h.";
  module.def("build_info", build_info, "Compiler, flags and targets that this module was built with.");
  module.def("cpu_isa", fastmix::cpu_isa, "Instruction set the CPU kernels run on.");
  module.def("use_openmp", fastmix::use_openmp, "Share the threads of the runtime with this GOMP_parallel.");
#if FASTMIX_HAVE_CUDA
  module.def("workspace", workspace, "Floats of workspace that a CUDA call will take.");
  module.def(
      "cuda_problem",
      [] {
        const int error = fastmix::cuda::problem();
        return error ? std::string(fastmix::cuda::error_text(error)) : std::string();
      },
      "What keeps the CUDA runtime from working here, or nothing.");
#endif
  bind_blends(module);
  bind_flip(module);
  bind_attention(module);
  bind_saliency(module);
  bind_maps(module);
  bind_cut(module);
  bind_transport(module);
  bind_losses(module);
}
