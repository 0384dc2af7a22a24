/* sum * by / 2^shift to int16, rounded and saturated; by < 2^31, so that the product fits */
static int16_t scaled(int32_t sum, int32_t by, int shift, int16_t low, int16_t high)
{
    const int64_t half = (int64_t)1 << (shift - 1), product = (int64_t)sum * by;
    const int64_t v = product < 0 ? -((half - product) >> shift) : (product + half) >> shift;
    return v >= high ? high : v <= low ? low : (int16_t)v;
}
