void NETWORK_input(const float *x, int8_t *whole)
{
    for (int i = 0; i < UPPER_INPUTS; i++) {
        const float v = x[i] / UPPER_STEP;
        whole[i] = (int8_t)(v >= 127.0f ? 127.0f : v <= -127.0f ? -127.0f : v < 0.0f ? v - 0.5f : v >= 0.0f ? v + 0.5f : 0.0f);
    }
}
