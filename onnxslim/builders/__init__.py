"""Networks written directly as ONNX graphs, with seeded He-initialised weights: opset 18, IR 9, batch axis `N`."""

from onnxslim.builders.csp import csp_net
from onnxslim.builders.mobilenet import GatedBlock, InvertedStage, mobilenet_v1, mobilenet_v2, mobilenet_v3
from onnxslim.builders.network import Network
from onnxslim.builders.resnet import resnet
from onnxslim.builders.small import mlp, small_cnn
from onnxslim.builders.vgg import VGG9, VGG11, VGG13, VGG16, VGG19, vgg

__all__ = [
    "VGG9",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "GatedBlock",
    "InvertedStage",
    "Network",
    "csp_net",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "resnet",
    "small_cnn",
    "vgg",
]
