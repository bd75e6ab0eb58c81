"""What `cga-lightning report` consists of: reading logs, figures, the page around them."""
