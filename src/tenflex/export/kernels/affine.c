/* y = a x + b, with numbers of its own for each channel */
static void affine(const float *a, const float *b, const float *x, float *y, int channels, int each)
{
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < each; i++, x++, y++)
            *y = a[c] * *x + b[c];
}
