/* The same where the nodes have breaks K of their own; before each polynomial stands where it starts. */
static void knots(const float *T, const float *K, const float *x, float *y, int n, int nodes, int count, int powers)
{
    for (int i = 0; i < n; i++) {
        const float *breaks = K + (long)(i % nodes) * (count - 1), *t;
        float u = x[i], sum;
        int c = 0;
        while (c < count - 1 && u >= breaks[c])
            c++;
        t = T + (long)(powers + 1) * ((i % nodes) * count + c);
        u -= t[0];
        sum = t[powers];
        for (int a = powers - 1; a >= 1; a--)
            sum = sum * u + t[a];
        y[i] = sum;
    }
}
