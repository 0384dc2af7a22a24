/* s: channels, height, width, height and width of the output, window (2), stride (2), padding (2), dilation (2) */
static void max_pool2d_TYPE(const NUMBER *x, OUT *y, const int *s)
{
    for (int c = 0; c < s[0]; c++, x += (long)s[1] * s[2])
        for (int i = 0; i < s[3]; i++)
            for (int j = 0; j < s[4]; j++) {
                NUMBER most = 0;
                int found = 0;
                for (int k = 0; k < s[5]; k++)
                    for (int l = 0; l < s[6]; l++) {
                        const int row = i * s[7] - s[9] + k * s[11], column = j * s[8] - s[10] + l * s[12];
                        if (row < 0 || row >= s[1] || column < 0 || column >= s[2])
                            continue;
                        const NUMBER one = x[(long)row * s[2] + column];
                        if (!found || one > most || (!(one <= 0) && !(one > 0))) /* NaN stays */
                            most = one;
                        found = 1;
                    }
                *y++ = most;
            }
}
