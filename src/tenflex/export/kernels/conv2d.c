/* s: channels in, height, width, channels out, height, width, kernel (2), stride (2), padding (2), dilation (2), groups */
static void conv2d(const float *W, const float *b, const float *x, float *y, const int *s)
{
    const int in = s[0] / s[14], out = s[3] / s[14];
    for (int o = 0; o < s[3]; o++) {
        const float *w = W + (long)o * in * s[6] * s[7], *first = x + (long)(o / out) * in * s[1] * s[2];
        for (int i = 0; i < s[4]; i++)
            for (int j = 0; j < s[5]; j++) {
                float sum = b ? b[o] : 0.0f;
                for (int c = 0; c < in; c++)
                    for (int k = 0; k < s[6]; k++) {
                        const int row = i * s[8] - s[10] + k * s[12];
                        if (row < 0 || row >= s[1])
                            continue;
                        for (int l = 0; l < s[7]; l++) {
                            const int column = j * s[9] - s[11] + l * s[13];
                            if (column >= 0 && column < s[2])
                                sum += w[(c * s[6] + k) * s[7] + l] * first[((long)c * s[1] + row) * s[2] + column];
                        }
                    }
                *y++ = sum;
            }
    }
}
