"""Running everything on one machine: embedded servers, services, traffic, files of spend, and the screen."""
