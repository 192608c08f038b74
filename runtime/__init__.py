"""What a process of tokenpool needs to be a good service: options, logs, files that change, admin pages.

Nothing here knows what a sidecar or a coordinator does.
"""
