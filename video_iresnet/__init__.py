"""3D residual networks for video action recognition: training and multi-view testing on real video files."""
