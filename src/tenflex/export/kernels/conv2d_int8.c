/* As in floating point, with a scale for each channel; s as there */
static void conv2d_TYPE(const int8_t *W, SCALES, const NUMBER *x, OUT *y, const int *s)
{
    const int in = s[0] / s[14], out = s[3] / s[14];
    for (int i = 0; i < s[3]; i++) {
        const int8_t *w = W + (long)i * in * s[6] * s[7];
        const NUMBER *first = x + (long)(i / out) * in * s[1] * s[2];
        for (int a = 0; a < s[4]; a++)
            for (int j = 0; j < s[5]; j++) {
                int32_t sum = 0;
                for (int c = 0; c < in; c++)
                    for (int k = 0; k < s[6]; k++) {
                        const int row = a * s[8] - s[10] + k * s[12];
                        if (row < 0 || row >= s[1])
                            continue;
                        for (int l = 0; l < s[7]; l++) {
                            const int column = j * s[9] - s[11] + l * s[13];
                            if (column >= 0 && column < s[2])
                                sum += (int32_t)w[(c * s[6] + k) * s[7] + l] * first[((long)c * s[1] + row) * s[2] + column];
                        }
                    }
                *y++ = FINISH;
            }
    }
}
