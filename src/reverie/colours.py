"""The colours of all pictures: those of Okabe and Ito (2008), told apart with any colour vision, and shades of grey."""

INK, MUTED, GRID, PAPER = "#1f2328", "#656d76", "#d8dee4", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
GREY, SILVER = "#8c959f", "#afb8c1"
