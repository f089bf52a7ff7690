/** Links to the jobs of a request. */

import { arrange, link, write } from "./dom.js";
import { count } from "./format.js";

/** Jobs that are linked, where their request is one of many. */
const JOBS = 3;

/** Show the first jobs, and how many more there are. Those of a deleted task are no links. */
export function showJobs(box, { jobs, task_deleted: deleted = false }, most = JOBS) {
  const items = (jobs ?? []).slice(0, most).map((job) => ({ key: String(job.id), job }));
  const more = (jobs?.length ?? 0) - items.length;
  if (more > 0) items.push({ key: "more", words: `+${count(more)}` });
  arrange(box, items, {
    key: ({ key }) => `${deleted} ${key}`,
    make: ({ job }) => ({ root: document.createElement(job && !deleted ? "a" : "span") }),
    update: ({ root }, { job, words }) => {
      write(root, job ? String(job.id) : words);
      if (!job || deleted) return;
      link(root, job.url);
      Object.assign(root, { target: "_blank", rel: "noopener noreferrer" });
    },
  });
}
