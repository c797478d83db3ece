// Plays the two videos of a pair together, moves the line over the spectrogram, and names the class that is heard.
const videos = [...document.querySelectorAll("video")];

function pauseOthers(playing) {
  for (const video of videos) if (!playing.includes(video)) video.pause();
}

// The browser's controls cover much of a small picture: they are shown where the pointer or the focus is.
for (const video of videos) {
  const show = () => (video.controls = true);
  const hide = () => (video.controls = document.activeElement === video);
  video.controls = false;
  video.tabIndex = 0;
  for (const name of ["pointerenter", "focus"]) video.addEventListener(name, show);
  for (const name of ["pointerleave", "blur"]) video.addEventListener(name, hide);
}

for (const show of document.querySelectorAll(".show")) {
  const own = [...show.querySelectorAll("video")];
  const line = show.querySelector(".now");
  const heard = show.querySelector(".heard");
  const button = show.querySelector(".play");
  const words = button?.textContent;
  if (!own.length) continue;
  let clock = own[0]; // the video whose time the line shows
  let together = false; // whether the button plays both

  function draw() {
    if (line) line.style.left = `${(100 * clock.currentTime) / (clock.duration || 1)}%`;
    if (heard) {
      const { change, first, second } = clock.dataset;
      heard.querySelector("b").textContent = clock.currentTime < Number(change) ? first : second;
    }
    if (own.some((video) => !video.paused)) requestAnimationFrame(draw);
  }

  function changed() {
    const plays = own.some((video) => !video.paused && !video.ended);
    show.classList.toggle("playing", plays || own.some((video) => video.currentTime > 0));
    if (!plays) together = false;
    if (heard) heard.hidden = false;
    if (button) button.textContent = plays ? "❚❚ Pause" : words;
  }

  for (const video of own) {
    video.addEventListener("play", () => {
      if (!together) video.muted = false;
      clock = together ? own[0] : video;
      pauseOthers(together ? own : [video]);
      changed();
      requestAnimationFrame(draw);
    });
    for (const name of ["pause", "ended"]) video.addEventListener(name, changed);
    video.addEventListener("seeked", draw);
  }

  if (!button) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    if (own.some((video) => !video.paused && !video.ended)) {
      for (const video of own) video.pause();
      return;
    }
    together = true;
    own.forEach((video, index) => {
      video.muted = index > 0; // both have the same sound
      video.currentTime = 0;
    });
    await Promise.allSettled(own.map((video) => video.play()));
  });
}

for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select the text and copy it";
    }
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
}
document.documentElement.dataset.ready = "yes";
