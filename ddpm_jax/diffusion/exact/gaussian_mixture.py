"""Gaussian mixtures with classes: densities, exact samples, and the exact law given a class or a linear observation.

Everything here runs on the host in float64. `exact_model` has the network that predicts such data without error.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg

MAX_TRIES = 1000  # of a rejection sampler, per sample on average


@dataclass(frozen=True)
class GaussianMixture:
    """p(x_0) = sum_k weights[k] N(means[k], bases[k] diag(variances[k]) bases[k]^T), with a class per component.

    Made by `make_mixture` or `make_empirical`. D is the number of values of one x_0, of the given `shape`.

    Attributes:
      weights: [K], sum 1.
      means: [K, D].
      variances: [K, D] eigenvalues of the covariances; 0 for points.
      bases: [K, D, D] eigenvectors, one per column; None: the axes.
      classes: [K] int, the class of each component, 0..num_classes-1.
      shape: of one x_0, such as (2,) or (8, 8, 1).
      num_classes: also those without a component, which have probability 0.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    bases: np.ndarray | None
    classes: np.ndarray
    shape: tuple[int, ...]
    num_classes: int

    @property
    def num_dims(self) -> int:
        """D."""
        return self.means.shape[1]

    def covariances(self) -> np.ndarray:
        """[K, D, D]."""
        if self.bases is None:
            return self.variances[:, :, None] * np.eye(self.num_dims)
        return np.einsum("kij,kj,klj->kil", self.bases, self.variances, self.bases)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean [D] and the covariance [D, D] of the whole mixture."""
        mean = self.weights @ self.means
        apart = self.means - mean
        return mean, np.einsum("k,kij->ij", self.weights, self.covariances()) + (self.weights * apart.T) @ apart

    def sample(self, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact samples: x_0 float64 [num, *shape], and their classes [num]."""
        component = rng.choice(len(self.weights), num, p=self.weights)
        apart = np.sqrt(self.variances[component]) * rng.standard_normal((num, self.num_dims))
        if self.bases is not None:
            for k in np.unique(component):
                of_k = component == k
                apart[of_k] = apart[of_k] @ self.bases[k].T
        return (self.means[component] + apart).reshape(num, *self.shape), self.classes[component]

    def log_joint(self, x: np.ndarray, *, signal: float = 1.0, noise: float = 0.0) -> np.ndarray:
        """log(weights[k] p(x_t | component k)), [N, K], for x_t = signal x_0 + noise eps; x [N, *shape]."""
        x = np.asarray(x, np.float64).reshape(len(x), -1)
        variances = signal**2 * self.variances + noise**2
        if np.any(variances <= 0):
            raise UserError("points without noise have no density; give noise above 0")
        log_joint = np.empty((len(x), len(self.weights)))
        with np.errstate(divide="ignore"):  # a component without weight
            log_weights = np.log(self.weights)
        for k, variance in enumerate(variances):
            apart = x - signal * self.means[k]
            apart = apart if self.bases is None else apart @ self.bases[k]
            log_joint[:, k] = log_weights[k] - 0.5 * np.sum(apart**2 / variance + np.log(2 * np.pi * variance), axis=1)
        return log_joint

    def log_prob(self, x: np.ndarray, *, signal: float = 1.0, noise: float = 0.0) -> np.ndarray:
        """log p(x_t), nats [N], for x_t = signal x_0 + noise eps."""
        return np.logaddexp.reduce(self.log_joint(x, signal=signal, noise=noise), axis=1)

    def class_log_probs(self, x: np.ndarray, *, signal: float = 1.0, noise: float = 0.0) -> np.ndarray:
        """log p(class | x_t), [N, num_classes], for x_t = signal x_0 + noise eps: the best possible classifier."""
        log_joint = self.log_joint(x, signal=signal, noise=noise)
        of_class = self.classes == np.arange(self.num_classes)[:, None]
        with np.errstate(divide="ignore"):  # a class without components
            by_class = np.logaddexp.reduce(np.where(of_class, log_joint[:, None, :], -np.inf), axis=2)
        return by_class - np.logaddexp.reduce(log_joint, axis=1)[:, None]

    def given_class(self, label: int) -> "GaussianMixture":
        """p(x_0 | class).

        Raises:
          UserError: no component of this class.
        """
        weights = np.where(self.classes == label, self.weights, 0.0)
        if not np.any(weights > 0):
            known = sorted(set(self.classes[self.weights > 0].tolist()))
            raise UserError(f"{arg('label')} must be a class with a component, of {known}; got {label}")
        return self._of_weights(weights)

    def given_observation(self, matrix: np.ndarray, values: np.ndarray, *, noise_std: float = 0.0) -> "GaussianMixture":
        """p(x_0 | matrix x_0 + noise_std N(0, I) = values), exactly: again a mixture of as many components.

        Args:
          matrix: [M, D], such as from `observations.observation_matrix`.
          values: [M], or any shape with M values.
          noise_std: of the observation. 0: every component must vary in every direction that is observed.

        Raises:
          UserError: shapes that do not fit; an observation that some component allows no noise for.
        """
        matrix, values = np.asarray(matrix, np.float64), np.asarray(values, np.float64).reshape(-1)
        if matrix.shape != (values.size, self.num_dims):
            raise UserError(
                f"{arg('matrix')} must be [{values.size}, {self.num_dims}], a row for each of the values and a column "
                f"for each of the values of x_0; got {list(matrix.shape)}"
            )
        log_weights, means, variances, bases = [], [], [], []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances(), strict=True):
            with_x_0 = covariance @ matrix.T  # [D, M]
            of_values = matrix @ with_x_0 + noise_std**2 * np.eye(values.size)
            try:
                factor = np.linalg.cholesky(of_values)
            except np.linalg.LinAlgError as error:
                raise UserError(
                    f"{arg('noise_std')} must be above 0: a component does not vary in all that is observed; got "
                    f"{noise_std}"
                ) from error
            whitened = np.linalg.solve(factor, with_x_0.T)  # [M, D]
            residual = np.linalg.solve(factor, values - matrix @ mean)
            log_density = -0.5 * residual @ residual - np.log(np.diag(factor)).sum() - 0.5 * len(values) * _LOG_2_PI
            log_weights.append((math.log(weight) if weight > 0 else -math.inf) + log_density)
            means.append(mean + whitened.T @ residual)
            eigenvalues, eigenvectors = np.linalg.eigh(covariance - whitened.T @ whitened)
            variances.append(np.maximum(eigenvalues, 0.0))  # of directions that are known exactly: rounding
            bases.append(eigenvectors)
        weights = np.exp(np.asarray(log_weights) - np.max(log_weights))
        given = replace(self, means=np.stack(means), variances=np.stack(variances), bases=np.stack(bases))
        return given._of_weights(weights)

    def sample_sharpened(
        self, rng: np.random.Generator, num: int, *, label: int, scale: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact samples of p(x_0) p(label | x_0)^scale, normalised: what guidance of this scale claims to draw.

        By rejection: for scale >= 1 from p(x_0 | label), accepted with probability p(label | x_0)^(scale - 1); below,
        from p(x_0), with p(label | x_0)^scale.

        Raises:
          UserError: a negative scale; a class without a component; fewer than one proposal of MAX_TRIES is accepted.
        """
        if not 0 <= scale < math.inf:
            raise UserError(f"{arg('scale')} must be finite and at least 0; got {scale}")
        given = self.given_class(label)
        proposal, power = (given, scale - 1) if scale >= 1 else (self, scale)
        kept, classes, tried = np.empty((0, *self.shape)), np.empty(0, int), 0
        while len(kept) < num:
            if tried > MAX_TRIES * num:
                raise UserError(
                    f"{arg('scale')}={scale}: fewer than one of {MAX_TRIES} proposals is accepted; take a smaller one"
                )
            x_0, of_classes = proposal.sample(rng, num)
            accept = np.log(rng.random(num)) < power * self.class_log_probs(x_0)[:, label] if power else slice(None)
            kept, classes = np.concatenate([kept, x_0[accept]]), np.concatenate([classes, of_classes[accept]])
            tried += num
        return kept[:num], classes[:num]

    def _of_weights(self, weights: np.ndarray) -> "GaussianMixture":
        """With other weights, which are normalised; components without weight are left out."""
        kept = weights > 0
        bases = None if self.bases is None else self.bases[kept]
        weights = weights[kept] / weights[kept].sum()
        return replace(
            self,
            weights=weights,
            means=self.means[kept],
            variances=self.variances[kept],
            bases=bases,
            classes=self.classes[kept],
        )


_LOG_2_PI = math.log(2 * math.pi)


def make_mixture(
    means: np.ndarray,
    *,
    std: float | np.ndarray | None = None,
    covariances: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    classes: np.ndarray | None = None,
) -> GaussianMixture:
    """A mixture of K Gaussians.

    Args:
      means: [K, *shape].
      std: standard deviation: a number, one per component [K], or one per value [K, *shape].
      covariances: [K, D, D], in place of `std`.
      weights: [K], at least 0; normalised. Default: equal.
      classes: [K] int, at least 0. Default: component k is class k.

    Raises:
      UserError: shapes that do not fit, negative weights, a covariance with a negative eigenvalue, both or neither of
        `std` and `covariances`.

    Example:
      >>> law = make_mixture(np.array([[-1.0, 0.0], [1.0, 0.0]]), std=0.3)
      >>> law.class_log_probs(np.array([[0.1, 0.0]])).round(2)
      array([[-2.33, -0.1 ]])
    """
    means = np.asarray(means, np.float64)
    if means.ndim < 2 or not means.size or not np.all(np.isfinite(means)):
        raise UserError(f"{arg('means')} must be finite and [K, *shape]; got shape {list(means.shape)}")
    num, shape = len(means), means.shape[1:]
    flat = means.reshape(num, -1)
    if (std is None) == (covariances is None):
        raise UserError(f"give either {arg('std')} or {arg('covariances')}")
    bases = None
    if std is not None:
        std = np.asarray(std, np.float64)
        if std.shape not in ((), (num,), means.shape):
            raise UserError(
                f"{arg('std')} must be a number, [{num}] or {list(means.shape)}; got shape {list(std.shape)}"
            )
        if not np.all((std >= 0) & np.isfinite(std)):
            raise UserError(f"{arg('std')} must be finite and at least 0")
        variances = np.broadcast_to(std.reshape(num, -1) if std.ndim else std, flat.shape) ** 2
    else:
        covariances = np.asarray(covariances, np.float64)
        if covariances.shape != (num, flat.shape[1], flat.shape[1]):
            raise UserError(
                f"{arg('covariances')} must be {[num, flat.shape[1], flat.shape[1]]}; got {list(covariances.shape)}"
            )
        variances, bases = np.linalg.eigh(covariances)
        if np.any(variances < -1e-12 * np.abs(variances).max()):
            raise UserError(f"{arg('covariances')} must have no negative eigenvalue; got {variances.min():g}")
        variances = np.maximum(variances, 0.0)
    weights = np.full(num, 1 / num) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (num,) or not (np.all(weights >= 0) and 0 < weights.sum() < math.inf):
        raise UserError(f"{arg('weights')} must be [{num}], at least 0 and not all 0")
    classes = np.arange(num) if classes is None else np.asarray(classes)
    if classes.shape != (num,) or classes.dtype.kind not in "iu" or np.any(classes < 0):
        raise UserError(f"{arg('classes')} must be [{num}] whole numbers of at least 0")
    return GaussianMixture(weights / weights.sum(), flat, variances, bases, classes, shape, int(classes.max()) + 1)


def make_empirical(points: np.ndarray, classes: np.ndarray | None = None) -> GaussianMixture:
    """The empirical distribution of the points [N, *shape]: what a network without error learns from a training set.

    Args:
      classes: [N] int; default: all 0.
    """
    points = np.asarray(points, np.float64)
    classes = np.zeros(len(points), int) if classes is None else classes
    return make_mixture(points, std=0.0, classes=classes)
