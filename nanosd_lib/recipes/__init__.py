"""Which cached computation, with which numbers of the profile, on which inputs."""
