"""Figures: matplotlib is imported here and nowhere else, and only by those who ask for `jaxcnn.plots`."""

from jaxcnn.plots.cells import heatmap as heatmap
from jaxcnn.plots.columns import bars as bars
from jaxcnn.plots.confusion import confusion as confusion
from jaxcnn.plots.images import Frame as Frame
from jaxcnn.plots.images import Tile as Tile
from jaxcnn.plots.images import tiles as tiles
from jaxcnn.plots.landscape import surfaces as surfaces
from jaxcnn.plots.learning import curves as curves
from jaxcnn.plots.lines import Line as Line
from jaxcnn.plots.lines import Mark as Mark
from jaxcnn.plots.lines import Panel as Panel
from jaxcnn.plots.lines import band as band
from jaxcnn.plots.lines import behind as behind
from jaxcnn.plots.mosaic import Strip as Strip
from jaxcnn.plots.mosaic import as_picture as as_picture
from jaxcnn.plots.mosaic import mosaic as mosaic
from jaxcnn.plots.multiples import grid as grid
from jaxcnn.plots.paths import Surface as Surface
from jaxcnn.plots.pictures import overlay as overlay
from jaxcnn.plots.pictures import pictures as pictures
from jaxcnn.plots.planes import Field as Field
from jaxcnn.plots.planes import planes as planes
from jaxcnn.plots.reliability import reliability as reliability
from jaxcnn.plots.style import COLOURS as COLOURS
from jaxcnn.plots.style import save as save
from jaxcnn.plots.terrain import terrain as terrain
