/* s: channels, height, width, height and width of the output, window (2), stride (2) */
static void avg_pool2d_TYPE(const NUMBER *x, OUT *y, const int *s)
{
    for (int c = 0; c < s[0]; c++, x += (long)s[1] * s[2])
        for (int i = 0; i < s[3]; i++)
            for (int j = 0; j < s[4]; j++) {
                float sum = 0.0f;
                for (int k = 0; k < s[5]; k++)
                    for (int l = 0; l < s[6]; l++)
                        sum += x[((long)i * s[7] + k) * s[2] + j * s[8] + l];
                *y++ = sum / (float)(s[5] * s[6]);
            }
}
