/* A polynomial of each node; clamped to -1 and 1 before. NaN stays NaN. */
static void polynomial(const float *T, const float *x, float *y, int n, int nodes, int powers, int clamped)
{
    for (int i = 0; i < n; i++) {
        const float *t = T + (long)powers * (i % nodes);
        float u = x[i], sum = t[powers - 1];
        if (clamped)
            u = u < -1.0f ? -1.0f : u > 1.0f ? 1.0f : u;
        for (int a = powers - 2; a >= 0; a--)
            sum = sum * u + t[a];
        y[i] = sum;
    }
}
