/* y = W x + b, W row by row */
static void linear(const float *W, const float *b, const float *x, float *y, int n, int m)
{
    for (int i = 0; i < n; i++) {
        const float *w = W + (long)i * m;
        float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
        int j = 0;
        for (; j + 3 < m; j += 4) {
            s0 += w[j] * x[j];
            s1 += w[j + 1] * x[j + 1];
            s2 += w[j + 2] * x[j + 2];
            s3 += w[j + 3] * x[j + 3];
        }
        for (; j < m; j++)
            s0 += w[j] * x[j];
        y[i] = (s0 + s1) + (s2 + s3) + (b ? b[i] : 0.0f);
    }
}
