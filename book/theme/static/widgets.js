// The widgets' manager asks requirejs where it stands, to find its fonts beside it.
window.requirejs.config({ baseUrl: new URL("../vendor/", document.currentScript.src).href });
