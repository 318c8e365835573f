"""How a layer makes its kernels and biases: as Keras' own layers do."""

import re
from typing import Any

import keras
from keras import constraints, initializers, regularizers

from keras_visattn.typing import Constraint, Initializer, Regularizer

KERNEL_ARGUMENTS = (
    ("kernel_initializer", initializers),
    ("bias_initializer", initializers),
    ("kernel_regularizer", regularizers),
    ("bias_regularizer", regularizers),
    ("kernel_constraint", constraints),
    ("bias_constraint", constraints),
)


def policy_of(layer):
    """Gives the dtype policy that a layer's own weights have."""
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        policy = policy[layer.path]
    return policy


class KernelLayer(keras.layers.Layer):
    """Abstract layer with the initializers, regularizers and constraints of kernels and biases.

    Args:
        kernel_initializer: Initializer of the kernels.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of the kernels.
        bias_regularizer: Regularizer of the biases.
        kernel_constraint: Constraint of the kernels.
        bias_constraint: Constraint of the biases.
        **kwargs: Keyword arguments of the next class.
    """

    def __init__(
        self,
        *,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer | None = None,
        bias_regularizer: Regularizer | None = None,
        kernel_constraint: Constraint | None = None,
        bias_constraint: Constraint | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)

    def kernel_arguments(self):
        """Arguments of a sublayer that makes its kernel and bias as this layer says."""
        arguments = {name: getattr(self, name) for name, _ in KERNEL_ARGUMENTS}
        for name in ("kernel_initializer", "bias_initializer"):
            if isinstance(arguments[name], initializers.Initializer):
                arguments[name] = arguments[name].clone()  # one instance draws the same values
        return {**arguments, "dtype": self.dtype_policy}

    def get_config(self):
        kernels = {name: module.serialize(getattr(self, name)) for name, module in KERNEL_ARGUMENTS}
        config = {**super().get_config(), **kernels}
        policies = self._policies_of_sublayers()
        if policies:
            config["dtype"] = keras.dtype_policies.serialize(policies)
        return config

    def _policies_of_sublayers(self):
        """Maps each quantized sublayer to its policy, so that a saved layer makes it so again.

        The keys match the end of a path: the layer may lie in another model when it is read.
        """
        default = getattr(self.dtype_policy, "default_policy", self.dtype_policy)
        policies = keras.dtype_policies.DTypePolicyMap(default)
        for layer in self._flatten_layers(include_self=False):
            policy = policy_of(layer)
            if policy.quantization_mode is not None:
                path = layer.path.removeprefix(f"{self.path}/")
                policies[f"(.*/)?{re.escape(path)}"] = policy
        return policies
