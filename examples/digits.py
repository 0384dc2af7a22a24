"""A trained digit network (LeNet-300-100) becomes one flexible layer, from 128 images without labels."""

import tempfile

import tenflex
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300


def main() -> None:
    model, digits = lenet300(), load_digits()
    result = tenflex.compress(model, digits.train_images[:128], {"fc1:fc3": tenflex.Block(rank=20, factor=10)})
    print(result)
    print(result.evaluate(digits.test_images, digits.test_labels))
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder)
        again = tenflex.load(folder, lenet300())
    assert (again(digits.test_images) == result.model(digits.test_images)).all()


if __name__ == "__main__":
    main()
