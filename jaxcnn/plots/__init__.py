"""Figures. Matplotlib is imported by this package alone.

These functions return a figure of matplotlib, and `save` writes it:

- Curves: `curves`, `lr_finder`, `panels` (of `Panel`, `Line` and `Mark`).
- Numbers: `bars`, `heatmap`, `tiles` (of `Tile` and `Frame`).
- Classifiers: `confusion`, `reliability`. Text lines read with CTC: `frame_probabilities`.
- Losses: `contours` and `surfaces_3d` (of `Field`), `optimizer_paths` (of `Surface`).
- Images: `image_grid`, and `mosaic` (of `Strip`, with `Box` and `Stroke` on it).

These make parts of one: `band` a line, `with_background` panels, and `overlay`, `to_rgb` and
`direction_colors` images. `COLORS` are the colors of lines.
"""

from jaxcnn.plots.bars import bars as bars
from jaxcnn.plots.contours import Field as Field
from jaxcnn.plots.contours import contours as contours
from jaxcnn.plots.contours import surfaces_3d as surfaces_3d
from jaxcnn.plots.curves import curves as curves
from jaxcnn.plots.evaluation import confusion as confusion
from jaxcnn.plots.evaluation import reliability as reliability
from jaxcnn.plots.frames import frame_probabilities as frame_probabilities
from jaxcnn.plots.heatmap import heatmap as heatmap
from jaxcnn.plots.image_grid import Box as Box
from jaxcnn.plots.image_grid import Strip as Strip
from jaxcnn.plots.image_grid import Stroke as Stroke
from jaxcnn.plots.image_grid import direction_colors as direction_colors
from jaxcnn.plots.image_grid import image_grid as image_grid
from jaxcnn.plots.image_grid import mosaic as mosaic
from jaxcnn.plots.image_grid import overlay as overlay
from jaxcnn.plots.image_grid import to_rgb as to_rgb
from jaxcnn.plots.lr_finder import lr_finder as lr_finder
from jaxcnn.plots.optimizer_paths import Surface as Surface
from jaxcnn.plots.optimizer_paths import optimizer_paths as optimizer_paths
from jaxcnn.plots.panels import Line as Line
from jaxcnn.plots.panels import Mark as Mark
from jaxcnn.plots.panels import Panel as Panel
from jaxcnn.plots.panels import band as band
from jaxcnn.plots.panels import panels as panels
from jaxcnn.plots.panels import with_background as with_background
from jaxcnn.plots.style import COLORS as COLORS
from jaxcnn.plots.style import save as save
from jaxcnn.plots.tiles import Frame as Frame
from jaxcnn.plots.tiles import Tile as Tile
from jaxcnn.plots.tiles import tiles as tiles
