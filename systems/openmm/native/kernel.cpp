// Energies and forces of many configurations of one molecule, as many rows at a time as a register holds.
//
// Every quantity is a vector over rows, so no sum runs across rows and a row's result does not depend on
// its batch. Units are OpenMM's: nm, rad, kJ/mol. Formulas: systems/openmm/native/tables.py.

#include <cmath>
#include <cstdlib>

namespace {

#ifdef __AVX512F__
constexpr int W = 8;
#else
// Twice the register's width costs twice the time: the compiler keeps the halves in memory.
constexpr int W = 4;
#endif
typedef double V __attribute__((vector_size(W * sizeof(double))));
typedef long long M __attribute__((vector_size(W * sizeof(double))));

#ifdef VECTOR_MATH
#define VECTOR __attribute__((simd("notinbranch")))
#else
#define VECTOR
#endif

}  // namespace

extern "C" {
VECTOR double log(double) noexcept;
VECTOR double exp(double) noexcept;
VECTOR double tanh(double) noexcept;
VECTOR double atan2(double, double) noexcept;
VECTOR double asin(double) noexcept;
}

namespace {

#define LANES(name, expression)                   \
    inline V name(V given) {                      \
        double x[W], y[W];                        \
        __builtin_memcpy(x, &given, sizeof x);    \
        for (int k = 0; k < W; k++) y[k] = expression; \
        V result;                                 \
        __builtin_memcpy(&result, y, sizeof y);   \
        return result;                            \
    }

LANES(root, __builtin_sqrt(x[k]))
LANES(logarithm, log(x[k]))
LANES(exponential, exp(x[k]))
LANES(hyperbolic_tangent, tanh(x[k]))
LANES(arcsine, asin(x[k]))

inline V angle_of(V sine, V cosine) {
    double x[W], y[W], z[W];
    __builtin_memcpy(x, &sine, sizeof x);
    __builtin_memcpy(y, &cosine, sizeof y);
    for (int k = 0; k < W; k++) z[k] = atan2(x[k], y[k]);
    V result;
    __builtin_memcpy(&result, z, sizeof z);
    return result;
}

inline V constant(double value) { return V{} + value; }
inline V larger(V a, V b) { return a > b ? a : b; }
inline V magnitude(V a) { return a < 0 ? -a : a; }

struct Vec {
    V x, y, z;
};

inline Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vec operator*(V s, Vec a) { return {s * a.x, s * a.y, s * a.z}; }
inline V dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline Vec cross(Vec a, Vec b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// Smallest square of the length of a normal: three atoms on a line have none.
constexpr double SMALLEST = 1e-24;

// A list of terms: `count` of them, with the particles of each and then its parameters.
struct List {
    long count;
    const int *particles;
    const double *parameters;
};

}  // namespace

extern "C" {

// Mirrors Specification in kernel.py.
struct Specification {
    long particles;
    List bonds;          // i j; k r0 c3 c4: k d^2 (1 + c3 d + c4 d^2), d = r - r0
    List angles;         // i j k; k theta0 c3: k d^2 (1 + c3 d), d = theta - theta0
    List linear;         // i j k; k: k (1 + cos theta)
    List stretch_bends;  // i j k; k1 k2 r1 r2 theta0: (k1 (r_ij - r1) + k2 (r_kj - r2)) (theta - theta0)
    List planes;         // i j k l; k: k chi^2, chi of j-l and the plane i j k
    List torsions;       // i j k l; a1 b1 ... a6 b6 c: sum a_n cos(n phi) + b_n sin(n phi) + c
    List pairs;          // i j; epsilon4 sigma^2 q: epsilon4 ((sigma/r)^12 - (sigma/r)^6) + q/r
    List buffered;       // i j; e c1 c2 c3 c4 q d: e (c1/(r+c2))^7 (c3/(r^7+c4) - 2) + q/(r+d)
    // Generalised Born: for each particle
    // offset radius, scaled radius, radius, alpha, beta, gamma, charge, surface
    long born;
    const double *solvated;
    const double *neck_depth, *neck_distance;  // (particle, particle); null without necks
    double neck_cut, coulomb;
    long inside, plain;  // whether a sphere within another is corrected; whether B = 1 / (1/or - I)
};

int evaluate(const Specification *s, long rows, const double *positions, double *energies,
             double *forces);
}

namespace {

struct Block {
    const Specification &s;
    Vec *x, *f;
    V energy;

    void angle(const int *p, Vec &first, Vec &last, V &theta) const;
    void push(const int *p, V slope, Vec first, Vec last) {
        f[p[0]] = f[p[0]] - slope * first;
        f[p[2]] = f[p[2]] - slope * last;
        f[p[1]] = f[p[1]] + slope * (first + last);
    }
    void bonds();
    void angles();
    void linear();
    void stretch_bends();
    void planes();
    void torsions();
    void pairs();
    void buffered();
    void born(V *scratch);
};

void Block::bonds() {
    for (long t = 0; t < s.bonds.count; t++) {
        const int *p = s.bonds.particles + 2 * t;
        const double *c = s.bonds.parameters + 4 * t;
        Vec a = x[p[0]] - x[p[1]];
        V r = root(dot(a, a)), d = r - c[1];
        energy += c[0] * d * d * (1.0 + d * (c[2] + d * c[3]));
        V slope = c[0] * d * (2.0 + d * (3.0 * c[2] + d * 4.0 * c[3]));
        Vec g = (slope / r) * a;
        f[p[0]] = f[p[0]] - g;
        f[p[1]] = f[p[1]] + g;
    }
}

// The angle i j k and its derivatives by the places of i and k.
void Block::angle(const int *p, Vec &first, Vec &last, V &theta) const {
    Vec a = x[p[0]] - x[p[1]], c = x[p[2]] - x[p[1]], n = cross(a, c);
    V normal = root(larger(dot(n, n), constant(SMALLEST)));
    theta = angle_of(normal, dot(a, c));
    first = (1.0 / (dot(a, a) * normal)) * cross(a, n);
    last = (-1.0 / (dot(c, c) * normal)) * cross(c, n);
}

void Block::angles() {
    for (long t = 0; t < s.angles.count; t++) {
        const int *p = s.angles.particles + 3 * t;
        const double *c = s.angles.parameters + 3 * t;
        Vec first, last;
        V theta;
        angle(p, first, last, theta);
        V d = theta - c[1];
        energy += c[0] * d * d * (1.0 + c[2] * d);
        push(p, c[0] * d * (2.0 + 3.0 * c[2] * d), first, last);
    }
}

void Block::linear() {
    for (long t = 0; t < s.linear.count; t++) {
        const int *p = s.linear.particles + 3 * t;
        const double k = s.linear.parameters[t];
        Vec a = x[p[0]] - x[p[1]], c = x[p[2]] - x[p[1]];
        V ra = 1.0 / root(dot(a, a)), rc = 1.0 / root(dot(c, c)), cosine = dot(a, c) * ra * rc;
        energy += k * (1.0 + cosine);
        push(p, constant(k), ra * ((rc * c) - (cosine * ra) * a), rc * ((ra * a) - (cosine * rc) * c));
    }
}

void Block::stretch_bends() {
    for (long t = 0; t < s.stretch_bends.count; t++) {
        const int *p = s.stretch_bends.particles + 3 * t;
        const double *c = s.stretch_bends.parameters + 5 * t;
        Vec first, last, a = x[p[0]] - x[p[1]], b = x[p[2]] - x[p[1]];
        V theta, ra = root(dot(a, a)), rb = root(dot(b, b));
        angle(p, first, last, theta);
        V stretch = c[0] * (ra - c[2]) + c[1] * (rb - c[3]), bend = theta - c[4];
        energy += stretch * bend;
        push(p, stretch, first, last);
        push(p, bend, (c[0] / ra) * a, (c[1] / rb) * b);
    }
}

void Block::planes() {
    for (long t = 0; t < s.planes.count; t++) {
        const int *p = s.planes.particles + 4 * t;
        const double k = s.planes.parameters[t];
        Vec a = x[p[0]] - x[p[1]], b = x[p[2]] - x[p[1]], d = x[p[3]] - x[p[1]], n = cross(a, b);
        V normal = 1.0 / root(larger(dot(n, n), constant(SMALLEST))), length = 1.0 / root(dot(d, d));
        V sine = dot(n, d) * normal * length;
        sine = sine > 1.0 ? constant(1.0) : (sine < -1.0 ? constant(-1.0) : sine);
        V chi = arcsine(sine);
        energy += k * chi * chi;
        V slope = 2.0 * k * chi / root(larger(1.0 - sine * sine, constant(SMALLEST)));
        Vec by_d = length * ((normal * n) - (sine * length) * d);
        Vec by_n = normal * ((length * d) - (sine * normal) * n);
        Vec by_a = cross(b, by_n), by_b = cross(by_n, a);
        f[p[0]] = f[p[0]] - slope * by_a;
        f[p[2]] = f[p[2]] - slope * by_b;
        f[p[3]] = f[p[3]] - slope * by_d;
        f[p[1]] = f[p[1]] + slope * (by_a + by_b + by_d);
    }
}

void Block::torsions() {
    for (long t = 0; t < s.torsions.count; t++) {
        const int *p = s.torsions.particles + 4 * t;
        const double *c = s.torsions.parameters + 13 * t;
        Vec u = x[p[0]] - x[p[1]], g = x[p[1]] - x[p[2]], h = x[p[3]] - x[p[2]];
        Vec a = cross(u, g), b = cross(h, g);
        V aa = larger(dot(a, a), constant(SMALLEST)), bb = larger(dot(b, b), constant(SMALLEST));
        V length = root(larger(dot(g, g), constant(SMALLEST)));
        V norm = 1.0 / root(aa * bb), cosine = dot(a, b) * norm, sine = -length * dot(u, b) * norm;
        V cn = cosine, sn = sine, slope{};
        energy += c[12];
        for (int n = 1; n <= 6; n++) {
            const double an = c[2 * n - 2], bn = c[2 * n - 1];
            energy += an * cn + bn * sn;
            slope += n * (bn * cn - an * sn);
            V next = cn * cosine - sn * sine;
            sn = sn * cosine + cn * sine;
            cn = next;
        }
        V la = length / aa, lb = length / bb, ug = dot(u, g) / length, hg = dot(h, g) / length;
        Vec start = -la * a, end = lb * b, middle = (ug / aa) * a - (hg / bb) * b;
        f[p[0]] = f[p[0]] - slope * start;
        f[p[3]] = f[p[3]] - slope * end;
        f[p[1]] = f[p[1]] + slope * (start - middle);
        f[p[2]] = f[p[2]] + slope * (end + middle);
    }
}

void Block::pairs() {
    for (long t = 0; t < s.pairs.count; t++) {
        const int *p = s.pairs.particles + 2 * t;
        const double *c = s.pairs.parameters + 3 * t;
        Vec d = x[p[0]] - x[p[1]];
        V inverse2 = 1.0 / dot(d, d), charge = c[2] * root(inverse2);
        V s2 = c[1] * inverse2, s6 = s2 * s2 * s2, e = c[0] * s6;
        energy += e * (s6 - 1.0) + charge;
        Vec g = ((e * (12.0 * s6 - 6.0) + charge) * inverse2) * d;
        f[p[0]] = f[p[0]] + g;
        f[p[1]] = f[p[1]] - g;
    }
}

inline V seventh(V a) {
    V a2 = a * a;
    return a2 * a2 * a2 * a;
}

void Block::buffered() {
    for (long t = 0; t < s.buffered.count; t++) {
        const int *p = s.buffered.particles + 2 * t;
        const double *c = s.buffered.parameters + 7 * t;
        Vec d = x[p[0]] - x[p[1]];
        V r = root(dot(d, d)), near = 1.0 / (r + c[2]), r2 = r * r, r6 = r2 * r2 * r2;
        V repulsion = c[0] * seventh(c[1] * near), far = 1.0 / (r6 * r + c[4]);
        V well = c[3] * far - 2.0, apart = 1.0 / (r + c[6]), charge = c[5] * apart;
        energy += repulsion * well + charge;
        V slope = -7.0 * repulsion * (near * well + c[3] * far * far * r6) - charge * apart;
        Vec g = (slope / r) * d;
        f[p[0]] = f[p[0]] - g;
        f[p[1]] = f[p[1]] + g;
    }
}

// Integral over the sphere `scaled` at distance r, seen from a particle of radius `own`; its slope by r.
inline V descreening(V r, double own, double scaled, bool inside, V &slope) {
    V upper = r + scaled, gap = r - scaled, distance = magnitude(gap);
    M outside = distance > own;
    V lower = outside ? distance : constant(own);
    V turn = outside ? (gap > 0 ? constant(1.0) : constant(-1.0)) : V{};
    V ri = 1.0 / r, l = 1.0 / lower, u = 1.0 / upper, l2 = l * l, u2 = u * u;
    V square = scaled * scaled * ri, part = r - square, ratio = 0.5 * logarithm(lower * u) * ri;
    V integral = 0.5 * (l - u + 0.25 * part * (u2 - l2) + ratio);
    slope = 0.5 * (u2 - turn * l2 + 0.25 * (1.0 + square * ri) * (u2 - l2) +
                   0.5 * part * (turn * l2 * l - u2 * u) + 0.5 * (turn * l - u) * ri - ratio * ri);
    if (inside) {
        M within = gap < -own;
        integral = within ? integral + (1.0 / own - l) : integral;
        slope = within ? slope + turn * l2 : slope;
    }
    M seen = upper > own;
    slope = seen ? slope : V{};
    return seen ? integral : V{};
}

inline V neck(V r, double depth, double distance, double reach, V &slope) {
    V y = r - distance, y2 = y * y, y4 = y2 * y2;
    V well = 1.0 / (1.0 + 100.0 * y2 + 3e5 * y4 * y2);
    M near = r < reach;
    slope = near ? -depth * well * well * y * (200.0 + 1.8e6 * y4) : V{};
    return near ? depth * well : V{};
}

void Block::born(V *scratch) {
    const long n = s.born;
    // Integral, Born radius and derivatives by particle; distance and both slopes by pair.
    V *integral = scratch, *radius = integral + n, *by_radius = radius + n, *pair = by_radius + n;
    for (long i = 0; i < 3 * n; i++) scratch[i] = V{};
    V *entry = pair;
    for (long i = 0; i < n; i++) {
        const double *a = s.solvated + 8 * i;
        for (long j = i + 1; j < n; j++, entry += 3) {
            const double *b = s.solvated + 8 * j;
            Vec d = x[i] - x[j];
            V r = root(dot(d, d)), first, second;
            V seen = descreening(r, a[0], b[1], s.inside, first);
            V back = descreening(r, b[0], a[1], s.inside, second);
            if (s.neck_depth) {
                const double reach = a[2] + b[2] + s.neck_cut;
                V slope;
                seen += neck(r, s.neck_depth[i * n + j], s.neck_distance[i * n + j], reach, slope);
                first += slope;
                back += neck(r, s.neck_depth[j * n + i], s.neck_distance[j * n + i], reach, slope);
                second += slope;
            }
            integral[i] += seen;
            integral[j] += back;
            entry[0] = r;
            entry[1] = first;
            entry[2] = second;
        }
    }
    V *chain = integral;  // d radius / d integral takes the place of the integral
    for (long i = 0; i < n; i++) {
        const double *a = s.solvated + 8 * i;
        if (s.plain) {
            radius[i] = 1.0 / (1.0 / a[0] - integral[i]);
            chain[i] = radius[i] * radius[i];
        } else {
            V psi = integral[i] * a[0];
            V t = hyperbolic_tangent(psi * (a[3] - psi * (a[4] - psi * a[5])));
            radius[i] = 1.0 / (1.0 / a[0] - t / a[2]);
            chain[i] = radius[i] * radius[i] * (1.0 - t * t) *
                       (a[3] - psi * (2.0 * a[4] - 3.0 * a[5] * psi)) * (a[0] / a[2]);
        }
        V inverse = 1.0 / radius[i], own = -0.5 * s.coulomb * a[6] * a[6] * inverse;
        V part = a[2] * inverse, surface = a[7] * part * part * part * part * part * part;
        energy += own + surface;
        by_radius[i] += -(own + 6.0 * surface) * inverse;
    }
    entry = pair;
    for (long i = 0; i < n; i++) {
        const double *a = s.solvated + 8 * i;
        for (long j = i + 1; j < n; j++, entry += 3) {
            const double *b = s.solvated + 8 * j;
            V r = entry[0], r2 = r * r, both = radius[i] * radius[j], quarter = 0.25 * r2 / both;
            V fade = exponential(-quarter), inverse = 1.0 / root(r2 + both * fade);
            V term = -s.coulomb * a[6] * b[6] * inverse, slope = -term * inverse * inverse;
            energy += term;
            V shared = 0.5 * slope * fade * (1.0 + quarter);
            by_radius[i] += shared * radius[j];
            by_radius[j] += shared * radius[i];
            entry[0] = slope * (1.0 - 0.25 * fade);  // over r
        }
    }
    for (long i = 0; i < n; i++) chain[i] *= by_radius[i];
    entry = pair;
    for (long i = 0; i < n; i++)
        for (long j = i + 1; j < n; j++, entry += 3) {
            Vec d = x[i] - x[j];
            V r = root(dot(d, d));
            Vec g = (entry[0] + (chain[i] * entry[1] + chain[j] * entry[2]) / r) * d;
            f[i] = f[i] - g;
            f[j] = f[j] + g;
        }
}

}  // namespace

// Energies (rows,) and forces (rows, particles, 3) of positions (rows, particles, 3); 1 without memory.
int evaluate(const Specification *s, long rows, const double *positions, double *energies,
             double *forces) {
    const long n = s->particles;
    const size_t size = sizeof(V) * (6 * n + 3 * s->born + 3 * s->born * (s->born - 1) / 2);
    V *memory = static_cast<V *>(std::aligned_alloc(sizeof(V), size));
    if (!memory) return 1;
    Vec *x = reinterpret_cast<Vec *>(memory), *f = x + n;
    for (long start = 0; start < rows; start += W) {
        for (int k = 0; k < W; k++) {
            // Lanes past the end repeat the last row.
            const double *row = positions + 3 * n * (start + k < rows ? start + k : rows - 1);
            for (long i = 0; i < n; i++) {
                x[i].x[k] = row[3 * i];
                x[i].y[k] = row[3 * i + 1];
                x[i].z[k] = row[3 * i + 2];
            }
        }
        for (long i = 0; i < n; i++) f[i] = Vec{};
        Block block{*s, x, f, V{}};
        block.bonds();
        block.angles();
        block.linear();
        block.stretch_bends();
        block.planes();
        block.torsions();
        block.pairs();
        block.buffered();
        if (s->born) block.born(memory + 6 * n);
        for (int k = 0; k < W && start + k < rows; k++) {
            energies[start + k] = block.energy[k];
            double *row = forces + 3 * n * (start + k);
            for (long i = 0; i < n; i++) {
                row[3 * i] = f[i].x[k];
                row[3 * i + 1] = f[i].y[k];
                row[3 * i + 2] = f[i].z[k];
            }
        }
    }
    std::free(memory);
    return 0;
}
