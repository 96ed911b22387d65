"""The commands that start the server's code.

serve                 `sidelight serve`
loading               its models, with their settings
top                   `sidelight top`: reads the metrics of a server each second
top_figures           what two scrapes say of the time between them
top_tables            these figures as tables for the terminal
progress              bars on a terminal while models load and while the rest takes long
ray                   replicas on Ray Serve
ray_context           a call that Ray's gRPC server has accepted, as the server's methods know calls
kernels               `sidelight kernels`
calibrate             `sidelight calibrate`: its arguments
calibration_run       one run: pairs of texts → a preset and its file
calibration_rows      the rows of all heads, kept in files while a run goes on
calibration_report    a table and a picture of the heads
"""
