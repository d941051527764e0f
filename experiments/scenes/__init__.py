"""Scenes with an exact truth, composed of what is cut out of photographs.

Each kind is a module, made of `parts`: `masks` for `experiments.segmentation`, `objects` for
`experiments.detection`, `figures` for `experiments.keypoints`, `depth` for `experiments.depth_map`,
and `lines` for `experiments.text`.
"""
