// OHIF's configuration for an Orthanc on the same origin; the default one points to a public cloud bucket.
window.config = {
  name: 'veilray',
  routerBasename: null,
  extensions: [],
  modes: [],
  // No guided tour on top of a clinical image.
  customizationService: { 'ohif.tours': { $set: [] } },
  showStudyList: true,
  maxNumberOfWebWorkers: 3,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  maxNumRequests: { interaction: 100, thumbnail: 5, prefetch: 25 },
  showErrorDetails: 'production',
  defaultDataSourceName: 'orthanc',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'orthanc',
      configuration: {
        friendlyName: 'Orthanc',
        name: 'orthanc',
        wadoUriRoot: '/dicom-web',
        qidoRoot: '/dicom-web',
        wadoRoot: '/dicom-web',
        qidoSupportsIncludeField: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        dicomUploadEnabled: false,
        omitQuotationForMultipartRequest: true,
        bulkDataURI: { enabled: true },
      },
    },
  ],
};

// OHIF 3.13.2 decides which report's outlines a viewport shows only after it has drawn it, and does not draw again when
// that report was opened before: the box of another report would stay under the new report's name. So draw again.
function drawAgain() {
  window.cornerstone?.getRenderingEngines().forEach(engine => engine.render());
}
for (const event of ['click', 'dblclick', 'keyup']) {
  document.addEventListener(event, () => [100, 500, 1500].forEach(delay => setTimeout(drawAgain, delay)), true);
}
