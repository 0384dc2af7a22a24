/* The polynomial of each node on the piece where x is: pieces start at whole numbers. NaN stays NaN. */
static void pieces(const float *T, const float *x, float *y, int n, int nodes, int count, int powers)
{
    for (int i = 0; i < n; i++) {
        float u = x[i], sum;
        const int c = u > 0.0f ? u < (float)(count - 1) ? (int)u : count - 1 : 0;
        const float *t = T + (long)powers * ((i % nodes) * count + c);
        u -= (float)c;
        sum = t[powers - 1];
        for (int a = powers - 2; a >= 0; a--)
            sum = sum * u + t[a];
        y[i] = sum;
    }
}
