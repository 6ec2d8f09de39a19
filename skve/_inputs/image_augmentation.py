"""Random changes of training images."""

import torch
import torch.nn.functional as F

from skve._runtime.randomness import own_global_generators


def augment(images, kind, generator):
    """Change a batch of images at random.

    Parameters
    ----------
    images : torch.Tensor of shape (n, channels, height, width)
        Values 0 to 1.
    kind : {"light", "strong"} or callable
        A callable runs with the global generators of torch, NumPy and Python seeded from `generator` and put
        back afterwards.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    torch.Tensor
        Same shape, values 0 to 1.
    """
    if callable(kind):
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with own_global_generators(seed):
            changed = kind(images)
        if not isinstance(changed, torch.Tensor) or changed.shape != images.shape:
            got = tuple(changed.shape) if isinstance(changed, torch.Tensor) else type(changed).__name__
            raise ValueError(
                f"augment must return a tensor of shape {tuple(images.shape)}, got {got} from augment={kind!r}."
            )
        return changed
    n = len(images)

    def uniform(low, high):
        return (low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float32)).to(images.device)

    strong = kind == "strong"
    zoom = uniform(0.6, 1.0) if strong else torch.ones(n, dtype=torch.float32, device=images.device)
    reach = (1 - zoom) + (0.0 if strong else 0.12)  # in half widths: up to 6 % of the side
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, dtype=torch.float32, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * reach, uniform(-1, 1) * reach
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    if strong:
        brightness, contrast, saturation = (uniform(0.6, 1.4).reshape(n, 1, 1, 1) for _ in range(3))
        grey = images.mean(1, keepdim=True)
        images = grey + saturation * (images - grey)
        middle = images.mean((1, 2, 3), keepdim=True)
        images = (middle + contrast * (images - middle)) * brightness
    return images.clamp(0, 1)
