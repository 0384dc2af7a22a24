/* Straight lines between 33 values of each node; x in 1/256 of a piece, from 0 to 8191 */
static void table(const int8_t *T, const int16_t *x, int16_t *y, int n, int nodes, int less)
{
    for (int i = 0; i < n; i++) {
        const int8_t *t = T + (long)33 * (i % nodes) + (x[i] >> 8);
        y[i] = (int16_t)((t[0] * 256 + (t[1] - t[0]) * (x[i] & 255)) / less);
    }
}
