// main.js: puts the sections and their pictures on the page, makes the navigation, and starts drawing.

// Where pictures go that name a section of another name.
const sectionNames = {keys: 'codebook', values: 'codebook', plan: 'memory', cost: 'layers', ranges: 'codebook'};

kvcal.start = () => {
  const data = kvcal.data();
  const main = document.getElementById('main');
  const fixed = document.getElementById('licences');
  const pictures = new Map();
  for (const picture of kvcal.pictures) {
    const name = sectionNames[picture.section] || picture.section;
    pictures.set(name, [...(pictures.get(name) || []), picture]);
  }
  kvcal.sections.sort((a, b) => a.order - b.order);
  const links = [];
  for (const section of kvcal.sections) {
    const element = sectionElement(section, data, pictures.get(section.id) || []);
    if (!element) continue;
    main.insertBefore(element, fixed);
    if (section.nav) links.push({id: section.id, text: section.nav});
  }
  links.push({id: 'licences', text: 'Licences'});
  document.getElementById('nav').replaceChildren(navigation(links));
  kvcal.startPictures();
  followSections(document.getElementById('nav'));
};

// A section: {id, order, nav, title, intro(data), content(data) -> [elements], after(data) -> [elements below the pictures],
// wanted(data) -> whether it belongs on this page}. Pictures that name it follow its content, by their `order`.
function sectionElement(section, data, pictures) {
  if (section.wanted && !section.wanted(data)) return null;
  const titleId = section.id + '-title';
  const heading = section.title ? kvcal.el('h2', {id: titleId}, section.title) : null;
  const content = section.content ? section.content(data) : [];
  const drawn = [...pictures].sort((a, b) => (a.order || 50) - (b.order || 50));
  const after = section.after ? section.after(data) : [];
  return kvcal.el('section', {id: section.id, 'aria-labelledby': section.title ? titleId : 'title'}, heading,
    section.intro ? kvcal.el('p', {class: 'intro'}, section.intro(data)) : null, content,
    drawn.filter((picture) => !picture.wanted || picture.wanted(data)).map((picture) => kvcal.figure(picture, data)), after);
}

function navigation(links) {
  return kvcal.el('ul', {}, links.map((link) => kvcal.el('li', {}, kvcal.el('a', {href: '#' + link.id}, link.text))));
}

// Marks the section that is being read.
function followSections(nav) {
  const links = new Map([...nav.querySelectorAll('a')].map((link) => [link.getAttribute('href').slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (entry.isIntersecting) link.setAttribute('aria-current', 'location');
      else link.removeAttribute('aria-current');
    }
  }, {rootMargin: '-20% 0px -79% 0px'});
  for (const id of links.keys()) watcher.observe(document.getElementById(id));
}

kvcal.start();
