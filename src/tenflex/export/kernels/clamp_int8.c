static void positive_TYPE(const NUMBER *x, int16_t *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] > 0 ? x[i] : 0;
}
