#ifdef UPPER_MAIN
#include <stdio.h>
static const ARRIVING recorded[COUNT * UPPER_INPUTS] = {RECORDED};
static const float expected[COUNT * UPPER_OUTPUTS] = {EXPECTED};

int main(void)
{
    float y[UPPER_OUTPUTS], worst = 0.0f;
    int wrong = 0;
    for (int s = 0; s < COUNT; s++) {
        NETWORK(recorded + s * UPPER_INPUTS, y);
        for (int i = 0; i < UPPER_OUTPUTS; i++) {
            const float due = expected[s * UPPER_OUTPUTS + i], off = y[i] > due ? y[i] - due : due - y[i];
            if (!(off <= BOUND))
                wrong++;
            if (off > worst)
                worst = off;
        }
    }
    printf("NETWORK: %d bytes of constants, %d bytes of stack between the layers\n", UPPER_FLASH, UPPER_STACK);
    printf("%d recorded inputs, largest difference %g, %s\n", COUNT, (double)worst, wrong ? "WRONG" : "as expected");
    return wrong ? 1 : 0;
}
#endif
