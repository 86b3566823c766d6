// Downloads a figure as a PNG, on the background of the page's theme.

export function downloadPng(filename, width, height, paint) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const ctx = canvas.getContext("2d");
  ctx.fillStyle = document.documentElement.dataset.bsTheme === "dark" ? "#182433" : "#ffffff";
  ctx.fillRect(0, 0, width, height);
  paint(ctx);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = filename;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
