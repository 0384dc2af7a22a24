/* To int16, saturated */
static int16_t rounded(float v, int16_t low, int16_t high)
{
    return v >= (float)high ? high : v <= (float)low ? low : (int16_t)(v < 0.0f ? v - 0.5f : v + 0.5f);
}
