"""The listings of SparseNet's "Optimizing a model" run as users know them; only imports and namespaces are changed.

The linear one marks its intercept, the first row, by a mask: its criterion does not penalize it, so nor may ISTA.
"""

import itertools

import pytest
import torch

import framework.happy_lambda
import framework.layers
import framework.losses
import framework.optim


def linear_model():
    # Create dummy data, input of 1 x 20, target of 1 x 10
    input = torch.randn([1, 20])  # or "x"
    target = torch.randn([1, 10])  # or "y"

    # Define training weights
    weights = torch.randn([20, 10], requires_grad=True)  # or "a"

    # Compute lambda
    happy_lambda = framework.happy_lambda.HappyLambdaLinear(
        input,
        distribution_count=1000,
    ).run()

    # Define loss
    criterion = framework.losses.PenalizedL2Loss([weights[1:]], happy_lambda)

    # Define optimizer
    penalized = torch.arange(20)[:, None].expand(20, 10) > 0
    optimizer = framework.optim.ISTA([{"params": [weights], "penalized": penalized}], happy_lambda)

    # Define the closure.
    # The closure is a function used by the optimizer to quickly
    # re-evaluate the loss of the model.
    def closure():
        with torch.no_grad():
            output = torch.matmul(input, weights)
            loss, penalty = criterion(output, target)
            return (loss + penalty).item()

    # Training loop, perfomed 10 times
    for _ in range(10):
        # 0. Clear any pre-existing gradients
        optimizer.zero_grad()

        # 1. Compute the output
        output = torch.matmul(input, weights)

        # 2. Compute the loss
        loss, penalty = criterion(output, target)

        # 3. Compute the gradients
        loss.backward()

        # 4. Optimize
        optimizer.step(closure, (loss + penalty).item())

        # Print loss for visualization
        print((loss + penalty).item())


# Define a neural net using SparseNet components
class Net(torch.nn.Module):
    def __init__(self):
        super(Net, self).__init__()  # noqa: UP008
        self.fc1 = torch.nn.Linear(20, 5)
        self.fc2 = framework.layers.NormalizedLinear(5, 10)  # Normalized neurons from SparseNet

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        a = framework.layers.sigma(self.fc1(input))  # Sigma activation function from SparseNet
        b = self.fc2(a)
        return b

    # Define a helper method to access parameter groups
    def param_groups(self):
        return [
            {
                "params": [self.fc1.weight, self.fc1.bias],
                "penalized": True,  # Used by ISTA and PenalizedL2Loss
            },
            {
                "params": [self.fc2.weight, self.fc2.bias],
                "penalized": False,  # Used by ISTA and PenalizedL2Loss
            },
        ]


def neural_net():
    # Create dummy data
    input = torch.randn([1, 20])
    target = torch.randn([1, 10])

    # Create model
    model = Net()

    # Compute Happy Lambda
    hl = framework.happy_lambda.HappyLambdaMLP(input, 1_000, [5, 10]).run()

    # Create a criterion, or "loss function"
    criterion = framework.losses.PenalizedL2Loss(
        model.param_groups()[0]["params"],  # Indicate "penalized" parameters
        hl,  # Indicate optimal regularization parameter
    )

    # Create an optimizer object, which is linked to the parameters to optimize
    optimizer = framework.optim.ISTA(model.param_groups(), hl)

    # Define the closure.
    # The closure is a function used by the optimizer to quickly
    # re-evaluate the loss of the model.
    def closure():
        with torch.no_grad():
            output = model.forward(input)
            loss, penalty = criterion.forward(output, target)
            return (loss + penalty).item()

    # Training loop, perfomed 10 times
    for _ in range(10):
        # 0. Clear any pre-existing gradients
        optimizer.zero_grad()

        # 1. Compute the output
        output = model.forward(input)

        # 2. Compute the loss
        loss, penalty = criterion.forward(output, target)

        # 3. Compute the gradients
        loss.backward()

        # 4. Optimize
        optimizer.step(closure, (loss + penalty).item())

        # Print loss for visualization
        print(loss.item())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("listing", [linear_model, neural_net])
def test_a_listing_runs_and_its_loss_decreases(listing, seed, capsys):
    torch.manual_seed(seed)
    listing()
    losses = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10
    assert losses[-1] < losses[0] / 2
    if listing is linear_model:  # The net prints its loss without the penalty, which may rise while the sum falls.
        assert all(after < before for before, after in itertools.pairwise(losses))
