# Two faults of OHIF 3.13.2 that hide or mix up results; serve.sh applies this to the unpacked bundles.

# A viewport learns which report's outlines to show after it has drawn, and draws again only for a report that is
# opened for the first time: the box of another report stays on screen under the new report's name. Draw again.
s|setTrackingUniqueIdentifiersForElement \*/\.m1)(element, .*measurementSelected);|&/* fixed here */ window.cornerstone.getEnabledElement(element)?.viewport.render();|

# A measurement's label is placed without regard to the viewport's width, so in a landscape image it is cut off.
s|getTextBoxCoordsCanvas(adaptedCanvasCoordinates)|getTextBoxCoordsCanvas(adaptedCanvasCoordinates, viewport.element/* fixed here */, textLines)|
