/* Sums of two values with steps of their own: p and q of each channel bring them to that of the sum, times 2^shift */
static void add_LABEL(const int16_t *p, const int16_t *q, const int8_t *shift, const FIRST *a, const SECOND *b,
                     int16_t *y, int channels, int each, int16_t low, int16_t high)
{
    for (int c = 0; c < channels; c++) {
        const int32_t half = shift[c] ? (int32_t)1 << (shift[c] - 1) : 0;
        for (int i = 0; i < each; i++) {
            const int32_t sum = (int32_t)p[c] * *a++ + (int32_t)q[c] * *b++;
            const int32_t v = sum < 0 ? -((half - sum) >> shift[c]) : (sum + half) >> shift[c];
            *y++ = (int16_t)(v >= high ? high : v <= low ? low : v);
        }
    }
}
