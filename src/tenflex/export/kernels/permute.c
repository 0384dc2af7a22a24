/* s: four sizes of y, then for each the distance in x of neighbours along it */
static void permute_TYPE(const NUMBER *x, OUT *y, const int *s)
{
    for (int a = 0; a < s[0]; a++)
        for (int b = 0; b < s[1]; b++)
            for (int c = 0; c < s[2]; c++)
                for (int d = 0; d < s[3]; d++)
                    *y++ = x[(long)a * s[4] + (long)b * s[5] + (long)c * s[6] + (long)d * s[7]];
}
