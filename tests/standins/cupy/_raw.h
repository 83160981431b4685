// What CUDA has and a host's compiler has not, for kernels that do without shared memory.

#include <algorithm>
#include <cstring>
#include <utility>

#define __device__
#define __global__ __attribute__((used))
#define __launch_bounds__(threads)

struct Index {
    unsigned x, y, z;
};
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

using std::min;

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }

template <typename To, typename From>
static inline To reinterpreted(From x) {
    static_assert(sizeof(To) == sizeof(From), "");
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

static inline float __uint_as_float(unsigned x) { return reinterpreted<float>(x); }
static inline unsigned __float_as_uint(float x) { return reinterpreted<unsigned>(x); }

// In the stead of what rotation.cu has in instructions of CUDA devices.
static inline float from_half(unsigned short x) { return reinterpreted<_Float16>(x); }
static inline unsigned short to_half(float x) { return reinterpreted<unsigned short>((_Float16)x); }

template <typename Words>
static inline void write(void* to, const Words& from) {
    *reinterpret_cast<Words*>(to) = from;
}

// Run a kernel as cuLaunchKernel does, whose arguments are pointers to arguments.
template <typename... Arguments, std::size_t... I>
static void run(void (*kernel)(Arguments...), Index grid, Index block, void** arguments,
                std::index_sequence<I...>) {
    gridDim = grid;
    blockDim = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < block.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x)
                            kernel(*reinterpret_cast<std::remove_const_t<Arguments>*>(
                                arguments[I])...);
}

template <typename... Arguments>
static void run(void (*kernel)(Arguments...), const Index* grid, const Index* block,
                void** arguments) {
    run(kernel, *grid, *block, arguments, std::index_sequence_for<Arguments...>());
}
