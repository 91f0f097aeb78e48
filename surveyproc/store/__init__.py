"""Where everything lies: object stores and disks, their clients, every path under the root."""
