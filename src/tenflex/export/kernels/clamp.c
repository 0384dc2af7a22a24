static void clamp(const float *x, float *y, int n, float low, float high)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] < low ? low : x[i] > high ? high : x[i];
}
