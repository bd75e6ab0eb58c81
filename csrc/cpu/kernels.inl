// The loops of kernels.h for one instruction set. The including file has chosen the set and defines
//   CGA_SET            name of the set
//   CGA_VECTOR_BYTES   width of a vector
//   CGA_TILE           rows on a side of a register tile: its products and operands must fit into the registers
// Nothing from the standard library: an inline function of it, compiled here for a new CPU, could be linked into code
// that runs on an old one.

namespace cga::cpu {
namespace {

// The sum of so many equal terms in float32 is accurate to 1e-6, however they round.
constexpr int kRun = 64;

template <class W>
struct Vector {
  static constexpr int lanes = CGA_VECTOR_BYTES / sizeof(W);
  typedef W value __attribute__((vector_size(CGA_VECTOR_BYTES)));
  typedef W unaligned __attribute__((vector_size(CGA_VECTOR_BYTES), aligned(sizeof(W)), may_alias));
  typedef double sums __attribute__((vector_size(lanes * sizeof(double))));
};

// Halves the lanes until one is left: a fixed order.
template <int Lanes, class Sums>
inline double horizontal(const Sums& sums) {
  double lane[Lanes];
  __builtin_memcpy(lane, &sums, sizeof(lane));
  for (int width = Lanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// body(i, j) for the products of a tile, unrolled: with known indices the sums stay in registers.
template <int I, int J, bool Diagonal, class Body>
inline __attribute__((always_inline)) void each(const Body& body) {
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < (Diagonal ? j + 1 : I); ++i) body(i, j);
  }
}

// Inner products of I rows with J rows, or of I rows with themselves (i <= j).
template <class W, int I, int J, bool Diagonal>
void tile(const W* const* left, const W* const* right, int64_t n, double* totals, int stride) {
  using V = Vector<W>;
  using Value = typename V::value;
  const auto read = [](const W* from) -> Value { return *reinterpret_cast<const typename V::unaligned*>(from); };
  const W* l[I];
  const W* r[J];
  for (int i = 0; i < I; ++i) l[i] = left[i];
  for (int j = 0; j < J; ++j) r[j] = right[j];
  typename V::sums total[I][J];
  each<I, J, Diagonal>([&](int i, int j) { total[i][j] = typename V::sums{}; });
  const int64_t whole = n - n % V::lanes;
  for (int64_t start = 0; start < whole; start += kRun * V::lanes) {
    const int64_t stop = start + kRun * V::lanes < whole ? start + kRun * V::lanes : whole;
    Value sum[I][J];
    each<I, J, Diagonal>([&](int i, int j) { sum[i][j] = Value{}; });
    for (int64_t x = start; x < stop; x += V::lanes) {
      Value a[I], b[J];
#pragma GCC unroll 8
      for (int i = 0; i < I; ++i) a[i] = read(l[i] + x);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) b[j] = Diagonal ? a[j] : read(r[j] + x);
      if constexpr (!Diagonal) {  // these rows are in the cache: fetch the next visit's meanwhile
#pragma GCC unroll 8
        for (int i = 0; i < I; ++i) __builtin_prefetch(l[i] + x + n, 0, 2);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) __builtin_prefetch(r[j] + x + n, 0, 2);
      }
      each<I, J, Diagonal>([&](int i, int j) { sum[i][j] += a[i] * b[j]; });
    }
    each<I, J, Diagonal>([&](int i, int j) { total[i][j] += __builtin_convertvector(sum[i][j], typename V::sums); });
  }
  each<I, J, Diagonal>([&](int i, int j) {
    double result = horizontal<V::lanes>(total[i][j]);
    for (int64_t x = whole; x < n; ++x) result += double(l[i][x]) * double(r[j][x]);
    totals[i * stride + j] += result;
  });
}

template <class W, int I>
void triangle(int rows, const W* const* row, int64_t n, double* totals, int stride) {
  if constexpr (I > 1) {
    if (rows < I) return triangle<W, I - 1>(rows, row, n, totals, stride);
  }
  tile<W, I, I, true>(row, row, n, totals, stride);
}

template <class W, int I, int J>
void rectangle(int rows, int columns, const W* const* left, const W* const* right, int64_t n, double* totals,
               int stride) {
  if constexpr (I > 1) {
    if (rows < I) return rectangle<W, I - 1, J>(rows, columns, left, right, n, totals, stride);
  }
  if constexpr (J > 1) {
    if (columns < J) return rectangle<W, I, J - 1>(rows, columns, left, right, n, totals, stride);
  }
  tile<W, I, J, false>(left, right, n, totals, stride);
}

// Groups of nearly equal size, so that no tile is left with one row.
template <class W>
void gram(const W* const* rows, int count, int64_t n, double* totals) {
  const int groups = (count + CGA_TILE - 1) / CGA_TILE;
  for (int a = 0; a < groups; ++a) {
    const int top = count * a / groups, height = count * (a + 1) / groups - top;
    double* line = totals + top * count;
    triangle<W, CGA_TILE>(height, rows + top, n, line + top, count);
    for (int b = a + 1; b < groups; ++b) {
      const int left = count * b / groups, width = count * (b + 1) / groups - left;
      rectangle<W, CGA_TILE, CGA_TILE>(height, width, rows + top, rows + left, n, line + left, count);
    }
  }
}

template <class W, int N>
void add_rows(W* own, const W* const* rows, const W* weights, int64_t n) {
  using V = Vector<W>;
  const W* row[N];
  W weight[N];
  for (int k = 0; k < N; ++k) row[k] = rows[k], weight[k] = weights[k];
  int64_t x = 0;
  for (; x + V::lanes <= n; x += V::lanes) {
    auto* target = reinterpret_cast<typename V::unaligned*>(own + x);
    typename V::value sum = *target;
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) sum += weight[k] * *reinterpret_cast<const typename V::unaligned*>(row[k] + x);
    *target = sum;
  }
  for (; x < n; ++x) {
    for (int k = 0; k < N; ++k) own[x] += weight[k] * row[k][x];
  }
}

template <class W>
void add(W* own, const W* const* rows, const W* weights, int count, int64_t n) {
  for (; count >= 4; count -= 4, rows += 4, weights += 4) add_rows<W, 4>(own, rows, weights, n);
  if (count == 3) add_rows<W, 3>(own, rows, weights, n);
  if (count == 2) add_rows<W, 2>(own, rows, weights, n);
  if (count == 1) add_rows<W, 1>(own, rows, weights, n);
}

inline uint32_t bits(float value) {
  uint32_t result;
  __builtin_memcpy(&result, &value, sizeof(result));
  return result;
}

inline float number(uint32_t value) {
  float result;
  __builtin_memcpy(&result, &value, sizeof(result));
  return result;
}

// Conversions by integer arithmetic: they vectorise on every set and do not depend on the handling of denormals.
struct Half {
  uint16_t value;

  operator float() const {
    const uint32_t sign = uint32_t(value & 0x8000) << 16, magnitude = uint32_t(value & 0x7fff) << 13;
    const uint32_t rebias = 112u << 23, smallest = 113u << 23;
    const uint32_t normal = magnitude + rebias + (magnitude >= 0x0f800000 ? rebias : 0);
    const uint32_t denormal = bits(number(magnitude + smallest) - number(smallest));
    return number(sign | (magnitude < 0x00800000 ? denormal : normal));
  }

  static Half from(float value) {
    const uint32_t all = bits(value), sign = all >> 16 & 0x8000, magnitude = all & 0x7fffffff;
    const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const uint32_t denormal = bits(number(magnitude) + 0.5f) - bits(0.5f);
    const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const uint32_t finite = magnitude < (113u << 23) ? denormal : normal;
    return {uint16_t(sign | (magnitude >= 0x47800000 ? special : finite))};
  }
};

struct BFloat {
  uint16_t value;

  operator float() const { return number(uint32_t(value) << 16); }

  static BFloat from(float value) {
    const uint32_t all = bits(value), rounded = (all + 0x7fff + (all >> 16 & 1)) >> 16;
    return {uint16_t((all & 0x7fffffff) > 0x7f800000 ? all >> 16 | 0x40 : rounded)};
  }
};

template <class T, class W>
void widen(const void* from, W* to, int64_t n) {
  const T* source = static_cast<const T*>(from);
  for (int64_t x = 0; x < n; ++x) to[x] = W(float(source[x]));
}

template <class T, class W>
void shorten(const W* from, void* to, int64_t n) {
  T* target = static_cast<T*>(to);
  for (int64_t x = 0; x < n; ++x) target[x] = T::from(float(from[x]));
}

template <class W>
void load(Element element, const void* from, W* to, int64_t n) {
  switch (element) {
    case Element::float16:
      return widen<Half>(from, to, n);
    case Element::bfloat16:
      return widen<BFloat>(from, to, n);
    case Element::float32:
      return widen<float>(from, to, n);
    case Element::float64:
      for (int64_t x = 0; x < n; ++x) to[x] = W(static_cast<const double*>(from)[x]);
  }
}

template <class W>
void store(Element element, const W* from, void* to, int64_t n) {
  switch (element) {
    case Element::float16:
      return shorten<Half>(from, to, n);
    case Element::bfloat16:
      return shorten<BFloat>(from, to, n);
    case Element::float32:
      for (int64_t x = 0; x < n; ++x) static_cast<float*>(to)[x] = float(from[x]);
      return;
    case Element::float64:
      for (int64_t x = 0; x < n; ++x) static_cast<double*>(to)[x] = double(from[x]);
  }
}

}  // namespace

const Kernels CGA_SET = {{gram<float>, add<float>, load<float>, store<float>},
                         {gram<double>, add<double>, load<double>, store<double>}};

}  // namespace cga::cpu
