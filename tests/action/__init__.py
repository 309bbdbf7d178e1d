"""A composite action run as GitHub's runner would, without GitHub."""
