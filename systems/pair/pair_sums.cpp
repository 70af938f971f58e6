// Sums over pairs of particles of functions of their distance, and the forces these make.
//
// A function is a list of operations on registers (systems/pair/expression_plan.py), of which register 0 holds
// the squared distance. As many rows as a register of the processor holds are worked on side by side, and a chunk
// of pairs at a time, so that every operation is a loop over a few hundred numbers in the nearest cache. No sum
// runs across rows: what a row gets does not depend on its batch.

#include <cmath>
#include <cstdlib>

#ifdef VECTOR_MATH
#define VECTOR __attribute__((simd("notinbranch")))
#else
#define VECTOR
#endif

extern "C" {
VECTOR double log(double) noexcept;
VECTOR double exp(double) noexcept;
VECTOR double pow(double, double) noexcept;
VECTOR float logf(float) noexcept;
VECTOR float expf(float) noexcept;
VECTOR float powf(float, float) noexcept;

struct Function {
    long steps;
    const int* codes;       // operation, target and three sources of every step
    const double* numbers;  // one for every step
    long registers;
    long value_register;  // -1: none
    double value_scale, value_quadratic, value_constant;
    long slope_register;
    double slope_scale, slope_constant;
    long cusp;
    long pairs;
    const int* first;
    const int* second;
};
}

namespace {

// Pairs worked on at a time.
constexpr long CHUNK = 32;

inline double logarithm(double x) { return log(x); }
inline float logarithm(float x) { return logf(x); }
inline double exponential(double x) { return exp(x); }
inline float exponential(float x) { return expf(x); }
inline double power(double x, double y) { return pow(x, y); }
inline float power(float x, float y) { return powf(x, y); }
inline double root(double x) { return __builtin_sqrt(x); }
inline float root(float x) { return __builtin_sqrtf(x); }
inline double magnitude(double x) { return __builtin_fabs(x); }
inline float magnitude(float x) { return __builtin_fabsf(x); }

// In the order of OPERATIONS in systems/pair/native.py.
enum Operation {
    MULTIPLY, ADD_SCALED, OFFSET, SCALE, SUBTRACT_FROM, FILL, POWER, POW, MIN, MAX, STEP, DELTA, SELECT,
    SQRT, RSQRT, RECIPROCAL, EXP, LOG, ABS
};

// A step may overwrite a source, number by number, which is no dependence between them.
#define LOOP(expression)                                     \
    _Pragma("GCC ivdep")                                     \
    for (long k = 0; k < count; k++) target[k] = expression; \
    break;

template <typename T>
void operate(const Function& function, T* registers, long size, long count) {
    for (long step = 0; step < function.steps; step++) {
        const int* code = function.codes + 5 * step;
        const T number = T(function.numbers[step]);
        T* target = registers + code[1] * size;
        const T* a = registers + code[2] * size;
        const T* b = registers + code[3] * size;
        const T* c = registers + code[4] * size;
        switch (code[0]) {
            case MULTIPLY: LOOP(a[k] * b[k])
            case ADD_SCALED: LOOP(a[k] + number * b[k])
            case OFFSET: LOOP(a[k] + number)
            case SCALE: LOOP(a[k] * number)
            case SUBTRACT_FROM: LOOP(number - a[k])
            case FILL: LOOP(number)
            case POWER: LOOP(power(a[k], number))
            case POW: LOOP(power(a[k], b[k]))
            // As torch's, NaN wins.
            case MIN: LOOP(a[k] < b[k] || a[k] != a[k] ? a[k] : b[k])
            case MAX: LOOP(a[k] > b[k] || a[k] != a[k] ? a[k] : b[k])
            case STEP: LOOP(a[k] >= 0 ? T(1) : T(0))
            case DELTA: LOOP(a[k] == 0 ? T(1) : T(0))
            case SELECT: LOOP(a[k] != 0 ? b[k] : c[k])
            case SQRT: LOOP(root(a[k]))
            case RSQRT: LOOP(T(1) / root(a[k]))
            case RECIPROCAL: LOOP(T(1) / a[k])
            case EXP: LOOP(exponential(a[k]))
            case LOG: LOOP(logarithm(a[k]))
            case ABS: LOOP(magnitude(a[k]))
        }
    }
}

template <typename T, int D>
struct Worker {
    static constexpr long W = 64 / sizeof(T);

    const long particles;
    T* x;          // particles, D, W
    T* force;      // the same
    T* apart;      // D, CHUNK, W
    T* registers;  // registers, CHUNK, W
    double energy[W];

    void load(const T* rows, long count) {
        for (long i = 0; i < particles * D; i++)
            for (long l = 0; l < W; l++)
                x[i * W + l] = rows[(l < count ? l : count - 1) * particles * D + i];
    }

    void chunk(const Function& function, const int* first, const int* second, long pairs, bool slopes,
               T* nearest) {
        T* squared = registers;
        for (long p = 0; p < pairs; p++) {
            const T* one = x + long(first[p]) * D * W;
            const T* other = x + long(second[p]) * D * W;
            T sum[W] = {};
            for (int d = 0; d < D; d++) {
                T* to = apart + (d * CHUNK + p) * W;
#pragma GCC ivdep
                for (long l = 0; l < W; l++) {
                    const T difference = one[d * W + l] - other[d * W + l];
                    to[l] = difference;
                    sum[l] += difference * difference;
                }
            }
            for (long l = 0; l < W; l++) squared[p * W + l] = sum[l];
        }
        T part[W] = {};
        if (function.value_quadratic != 0) {
            for (long p = 0; p < pairs; p++)
                for (long l = 0; l < W; l++) part[l] += squared[p * W + l];
            for (long l = 0; l < W; l++) part[l] *= T(function.value_quadratic);
        }
        if (nearest)
            for (long p = 0; p < pairs; p++)
                for (long l = 0; l < W; l++)
                    nearest[l] = squared[p * W + l] < nearest[l] ? squared[p * W + l] : nearest[l];
        operate(function, registers, CHUNK * W, pairs * W);
        if (function.value_register >= 0) {
            const T* value = registers + function.value_register * CHUNK * W;
            T sum[W] = {};
            for (long p = 0; p < pairs; p++)
                for (long l = 0; l < W; l++) sum[l] += value[p * W + l];
            for (long l = 0; l < W; l++) part[l] += T(function.value_scale) * sum[l];
        }
        for (long l = 0; l < W; l++) energy[l] += double(part[l]);
        if (!slopes) return;
        const T scale = T(-function.slope_scale), constant = T(-function.slope_constant);
        const bool plain = function.slope_register < 0;
        const T* slope = registers + (plain ? 0 : function.slope_register) * CHUNK * W;
        for (long p = 0; p < pairs; p++) {
            T* one = force + long(first[p]) * D * W;
            T* other = force + long(second[p]) * D * W;
            T push[W];
            for (long l = 0; l < W; l++)
                push[l] = plain ? constant : scale * slope[p * W + l] + constant;
            for (int d = 0; d < D; d++) {
                const T* along = apart + (d * CHUNK + p) * W;
#pragma GCC ivdep
                for (long l = 0; l < W; l++) {
                    const T each = push[l] * along[l];
                    one[d * W + l] += each;
                    other[d * W + l] -= each;
                }
            }
        }
    }

    void run(long rows, long functions, const Function* function, const T* positions, T* energies, T* scores,
             T* nearest) {
        const long size = particles * D;
        for (long start = 0; start < rows; start += W) {
            const long count = rows - start < W ? rows - start : W;
            load(positions + start * size, count);
            T close[W];
            for (long l = 0; l < W; l++) energy[l] = 0, close[l] = T(INFINITY);
            if (scores)
                for (long i = 0; i < size * W; i++) force[i] = 0;
            for (long f = 0; f < functions; f++) {
                const Function& each = function[f];
                for (long l = 0; l < W; l++) energy[l] += each.value_constant * double(each.pairs);
                for (long p = 0; p < each.pairs; p += CHUNK) {
                    const long pairs = each.pairs - p < CHUNK ? each.pairs - p : CHUNK;
                    chunk(each, each.first + p, each.second + p, pairs, scores != nullptr,
                          nearest && each.cusp ? close : nullptr);
                }
            }
            for (long l = 0; l < count; l++) {
                energies[start + l] = T(energy[l]);
                if (nearest) nearest[start + l] = close[l];
                if (scores)
                    for (long i = 0; i < size; i++) scores[(start + l) * size + i] = force[i * W + l];
            }
        }
    }
};

template <typename T, int D>
int evaluated(long particles, long registers, long rows, long functions, const Function* function,
              const T* positions, T* energies, T* scores, T* nearest) {
    constexpr long W = 64 / sizeof(T);
    const long state = particles * D * W, whole = 2 * state + (D + registers) * CHUNK * W;
    T* memory = static_cast<T*>(std::aligned_alloc(64, whole * sizeof(T)));
    if (!memory) return 1;
    Worker<T, D> worker{particles, memory, memory + state, memory + 2 * state,
                        memory + 2 * state + D * CHUNK * W, {}};
    worker.run(rows, functions, function, positions, energies, scores, nearest);
    std::free(memory);
    return 0;
}

template <typename T>
int evaluated(long dimensions, long particles, long registers, long rows, long functions,
              const Function* function, const T* positions, T* energies, T* scores, T* nearest) {
    switch (dimensions) {
        case 1:
            return evaluated<T, 1>(particles, registers, rows, functions, function, positions, energies, scores,
                                   nearest);
        case 2:
            return evaluated<T, 2>(particles, registers, rows, functions, function, positions, energies, scores,
                                   nearest);
        default:
            return evaluated<T, 3>(particles, registers, rows, functions, function, positions, energies, scores,
                                   nearest);
    }
}

}  // namespace

extern "C" int evaluate_float(long dimensions, long particles, long registers, long rows, long functions,
                              const Function* function, const float* positions, float* energies,
                              float* scores, float* nearest) {
    return evaluated<float>(dimensions, particles, registers, rows, functions, function, positions, energies,
                            scores, nearest);
}

extern "C" int evaluate_double(long dimensions, long particles, long registers, long rows, long functions,
                               const Function* function, const double* positions, double* energies,
                               double* scores, double* nearest) {
    return evaluated<double>(dimensions, particles, registers, rows, functions, function, positions, energies,
                             scores, nearest);
}
