"""What runs beside us: small programs, each as its own documentation would have it, in an environment of their own."""
