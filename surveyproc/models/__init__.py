"""Networks: registry, input features, PDFs, packages, and the products built on them."""
